"""Graphs held against one another on held-out training images, while a build still decides how to quantize.

The gate's images are never among them: what is chosen on a test set looks better there than it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.data.source import Dataset, Progress, require_split
from athe_export.errors import RecipeError
from athe_export.precision.subject import Clock, distance, outputs
from athe_export.preprocessing import Pixels, Preprocessing
from athe_export.recipe import Recipe
from athe_export.runtime.engines import Session
from athe_export.runtime.routing import RouterPolicy, match_policy
from athe_export.system import HOLDOUT, Prepared

HELD_OUT_IMAGES = 512
ROUTER = "router"
_SEED = 0
Outputs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trial:
    """A graph's answers against those of a more exact one.

    `agreement` is the share of `images` with the same answer (of a router: sent to the same branch), `sqnr_db` the
    ratio of signal to quantization noise of the outputs (None: no difference at all), `correct` how many answers are
    right (None of a router).
    """

    images: int
    agreement: float
    sqnr_db: float | None
    correct: int | None

    @property
    def top1(self) -> float | None:
        return None if self.correct is None else self.correct / self.images

    def to_json(self) -> dict[str, Any]:
        return {"images": self.images, "agreement": self.agreement, "sqnr_db": self.sqnr_db, "top1": self.top1}


@dataclass(frozen=True)
class HeldOut:
    """Held-out images at source size, with the label and the branch that the reference sends each to, int64 [n]."""

    split: str
    ids: npt.NDArray[np.int64]
    sources: tuple[Pixels, ...]
    labels: npt.NDArray[np.int64]
    routed: npt.NDArray[np.int64]
    branches: tuple[str, ...]
    policy: RouterPolicy | None
    fixed: bool
    preprocessing: Preprocessing

    def positions(self, role: str) -> npt.NDArray[np.int64]:
        """Which of the images a graph is measured on: those routed to the branch; all of them, of a router."""
        if role == ROUTER:
            return np.arange(len(self.sources))
        return np.flatnonzero(self.routed == self.branches.index(role))

    def pixels(self, role: str, size: int) -> Iterator[Pixels]:
        """The images of a graph, uint8 [1, size, size, 3] each."""
        return (self.preprocessing.resized(self.sources[p], size)[None] for p in self.positions(role))

    def compare(self, role: str, exact: Outputs, found: Outputs) -> Trial:
        """`found` against `exact`: outputs of two graphs of a role on `pixels`, float32 [n, classes] or [n, 1]."""
        far = distance(exact, found)
        if role == ROUTER:
            return Trial(len(exact), float(np.mean(self._routed_alike(exact[:, 0], found[:, 0]))), far.sqnr_db, None)
        correct = int((found.argmax(1) == self.labels[self.positions(role)]).sum())
        return Trial(len(exact), far.agreement, far.sqnr_db, correct)

    def _routed_alike(self, exact: Outputs, found: Outputs) -> npt.NDArray[np.bool_]:
        """With bounds matched to the scores `found`, as a build matches those of an int8 router."""
        assert self.policy is not None
        decided = self.policy.branches_of(exact)
        policy = self.policy if self.fixed else match_policy(found, decided, len(self.branches))
        return policy.branches_of(found) == decided


def require_held_out(recipe: Recipe, dataset: Dataset) -> None:
    """Raises RecipeError, naming the key, where the recipe asks for what is measured on a split that is not there."""
    keys = ["parity.stability_draws"] if recipe.parity.stability_draws else []
    for target in recipe.targets.names:
        spec, of = getattr(recipe.targets, target).quantize, f"targets.{target}.quantize"
        keys += [f"{of}.calibrator"] if spec.calibrator == "auto" else []
        keys += [f"{of}.{key}" for key in ("sensitivity", "auto") if getattr(spec, key) is not None]
    for key in keys:
        require_split(dataset, HOLDOUT, key)


def draw_held_out(prepared: Prepared, key: str, count: int = HELD_OUT_IMAGES) -> HeldOut:
    """`count` images of the held-out split, or as many as there are, drawn without the calibration set's.

    Args:
        key: of the recipe, which asks for them; named in the error.

    Raises:
        RecipeError: there is no held-out split, or a branch gets no image of it.
    """
    dataset, images, routing = prepared.dataset, prepared.images, prepared.routing
    require_split(dataset, HOLDOUT, key)
    drawn = np.random.RandomState(_SEED).permutation(dataset.size(HOLDOUT)).astype(np.int64)
    if images.found.split == HOLDOUT:
        drawn = drawn[~np.isin(drawn, images.found.ids)]
    ids = np.sort(drawn[:count])
    sources = tuple(images.preprocessing.source(dataset.image(HOLDOUT, int(i))) for i in ids)
    routed = np.zeros(len(ids), np.int64)
    if routing.policy is not None:
        routed = routing.policy.branches_of(prepared.reference.scores(sources))
    recipe = prepared.file.recipe
    names = tuple(b.name for b in recipe.branches)
    for position, name in enumerate(names):
        if not (routed == position).any():
            raise RecipeError(
                f"the router sends none of {len(ids)} held-out images to branch {name!r}, so nothing can be measured on it",
                where=key,
                remedy="change router.threshold, or leave this key out",
            )
    fixed = recipe.router is not None and recipe.router.threshold.fixed is not None
    return HeldOut(
        HOLDOUT, ids, sources, dataset.labels(HOLDOUT)[ids], routed, names, routing.policy, fixed, images.preprocessing
    )


def outputs_on(session: Session, held: HeldOut, role: str, size: int, said: str, progress: Progress) -> Outputs:
    """A graph's outputs on its held-out images, float32 [n, classes], of a router [n, 1]."""
    return outputs(session, held.pixels(role, size), len(held.positions(role)), Clock(), progress, said)
