"""Recipe + checkpoint + calibration images -> the routed torch system that is exported and referred to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from athe_export.branches import BranchGraphSource, graph_sources
from athe_export.data.calibration import BranchShare, CalibrationSet, split_by_branch
from athe_export.data.source import Dataset, Progress, require_split
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import build_model, grouped, random_checkpoint, read_checkpoint
from athe_export.model.equalise import equalised, measure_ranges, require_same
from athe_export.model.heads import head_importance, rank_heads
from athe_export.model.structured import narrowed
from athe_export.parity.reference import Reference
from athe_export.preprocessing import Pixels, Preprocessing, Tensor
from athe_export.recipe import EqualiseSpec, Recipe, RecipeFile
from athe_export.reference import TorchReference
from athe_export.runtime.routing import RouterPolicy, fit_policy, policy_for_share

HOLDOUT = "holdout"
FRONTIER_IMAGES = 1000  # held-out images of the frontier where the threshold is not fitted on all of them
_BATCH = 16
_CHECKED = 32  # calibration images a branch on which equalisation is held against the model as it was


@dataclass(frozen=True)
class System:
    """The model, its fixed-shape modules, and what of the checkpoint was used; `notes` name what was made up for.

    `equalised` says whether LayerNorm's scales were folded (`equalise_system`).
    """

    model: AtheModel
    sources: tuple[BranchGraphSource, ...]
    checkpoint_sha256: str | None
    trained: bool
    notes: tuple[str, ...]
    equalised: bool = False


@dataclass(frozen=True)
class CalibrationImages:
    """Calibration images at source size, in the order of the set's ids; `labels` where weights are to be fitted to them."""

    found: CalibrationSet
    sources: tuple[Pixels, ...]
    preprocessing: Preprocessing
    labels: tuple[int, ...] = ()

    def tensors(self, share: BranchShare | None, size: int, limit: int | None = None) -> Iterator[Tensor]:
        """Streams a branch's images (all of them without a share), `limit` at most, as float32 [1, 3, size, size]."""
        return (self.preprocessing.tensor(self.sources[p], size) for p in self._positions(share)[:limit])

    def pixels(self, share: BranchShare | None, size: int, limit: int | None = None) -> Iterator[Pixels]:
        """The same as pixels uint8 [1, size, size, 3], which graphs take."""
        return (self.preprocessing.resized(self.sources[p], size)[None] for p in self._positions(share)[:limit])

    def _positions(self, share: BranchShare | None) -> Sequence[int]:
        return range(len(self.sources)) if share is None else share.positions


def load_system(file: RecipeFile, images: CalibrationImages, seed: int | None, path: str | None) -> System:
    """Loads the weights, ranks the heads where the checkpoint does not, and cuts every branch out.

    Args:
        seed: of random weights, where the recipe asks for untrained ones.
        path: the checkpoint file otherwise.

    Raises:
        CheckpointError: the file is unusable or does not fit.
    """
    recipe = file.recipe
    if path is None:
        assert seed is not None
        checkpoint, where = random_checkpoint(recipe, seed), f"random weights of seed {seed}"
    else:
        resolved = file.resolve(path)
        expected = recipe.checkpoint.sha256 if path == recipe.checkpoint.path else None
        checkpoint, where = read_checkpoint(resolved, expected), str(resolved)
    pruned = None
    if recipe.checkpoint.structured is not None and checkpoint.trained:
        checkpoint, pruned = narrowed(checkpoint, recipe, _labelled(recipe, images), where)
    model, unused = build_model(recipe, checkpoint, where)
    notes = [pruned] if pruned else []
    notes += [f"checkpoint tensors without a use in this recipe: {grouped(unused)}"] if unused else []
    if model.head_rank is None and any(b.heads < recipe.model.heads for b in recipe.branches):
        batches = (torch.from_numpy(t) for t in images.tensors(None, recipe.model.image_size))
        model.head_rank = rank_heads(head_importance(model.deit, batches))
        notes.append(f"the checkpoint holds no head rank; it was measured on {len(images.sources)} calibration images")
    if not checkpoint.trained:
        notes.append("untrained weights: shapes and speed only, accuracy means nothing")
    return System(model, graph_sources(model), checkpoint.sha256, checkpoint.trained, tuple(notes))


def _labelled(recipe: Recipe, images: CalibrationImages) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """As many calibration images as structured pruning asks for, in batches, with their labels."""
    assert recipe.checkpoint.structured is not None
    limit = recipe.checkpoint.structured.images
    labels = torch.tensor(images.labels[:limit])
    for start, batch in enumerate(_batches(images.tensors(None, recipe.model.image_size, limit))):
        yield batch, labels[start * _BATCH :][: len(batch)]


@dataclass(frozen=True)
class Routing:
    """The reference's policy, the images that it was fitted on and each branch's calibration images.

    `split`, `ids` and `scores` (float32 [n], the reference's) are what another engine's policy is matched to; `notes`
    name top-ups and stand-ins. `held_out` is the reference on held-out images, on which accuracy can be told against cost;
    None of untrained weights and where there are no such images.
    """

    policy: RouterPolicy | None
    shares: tuple[BranchShare, ...]
    notes: tuple[str, ...]
    split: str = ""
    ids: tuple[int, ...] = ()
    scores: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    held_out: Reference | None = None


@dataclass(frozen=True)
class Prepared:
    """All inputs of a build, checked: what every later stage reads and none changes."""

    file: RecipeFile
    dataset: Dataset
    images: CalibrationImages
    system: System
    reference: TorchReference
    routing: Routing


def fit_routing(
    file: RecipeFile,
    system: System,
    reference: TorchReference,
    images: CalibrationImages,
    dataset: Dataset,
    progress: Progress,
) -> Routing:
    """Fixes the router's bounds and splits the calibration set by them.

    Bounds stated as a trade-off are fitted on the held-out split (`max_drop_pp`) or on calibration scores
    (`share_simple`, and untrained weights, whose scores mean nothing).

    Raises:
        RecipeError: max_drop_pp on a dataset without a held-out split.
        CalibrationError: a branch gets no calibration image.
    """
    recipe, names = file.recipe, tuple(b.name for b in file.recipe.branches)
    everything = BranchShare(tuple(range(len(images.sources))), ())
    if recipe.router is None:
        return Routing(None, (everything,), ())
    scores = reference.scores(images.sources)
    notes: list[str] = []
    policy, evidence = _policy(recipe, system, reference, dataset, scores, notes, progress)
    path = file.resolve(recipe.data.calibration)
    shares = split_by_branch(images.found, scores, policy.branches_of(scores), names, path)
    for name, share in zip(names, shares, strict=True):
        if share.topped_up:
            ids = ", ".join(map(str, share.topped_up))
            notes.append(f"branch {name} has too few calibration images of its own; topped up with ids {ids}")
    if evidence is None:  # the calibration images
        held = _held_out(system, reference, dataset, FRONTIER_IMAGES, progress)
        return Routing(policy, shares, tuple(notes), images.found.split, tuple(images.found.ids), scores, held)
    return Routing(policy, shares, tuple(notes), HOLDOUT, tuple(int(i) for i in evidence.ids), evidence.scores, evidence)


def _held_out(
    system: System, reference: TorchReference, dataset: Dataset, limit: int | None, progress: Progress
) -> Reference | None:
    """The reference on the first `limit` held-out images."""
    if not system.trained or HOLDOUT not in dataset.splits:
        return None
    size = dataset.size(HOLDOUT)
    return reference.run(dataset, HOLDOUT, np.arange(size if limit is None else min(limit, size)), progress)


def _policy(
    recipe: Recipe,
    system: System,
    reference: TorchReference,
    dataset: Dataset,
    scores: npt.NDArray[np.float32],
    notes: list[str],
    progress: Progress,
) -> tuple[RouterPolicy, Reference | None]:
    """The policy, and the reference on the held-out images where they were what fixed it."""
    assert recipe.router is not None
    threshold, branches = recipe.router.threshold, len(recipe.branches)
    if not system.trained and threshold.fixed is None:
        notes.append("router bounds split the calibration scores evenly, since the weights are untrained")
        return policy_for_share(scores, 1 / branches, branches), None
    correct, held = np.zeros((0, branches), np.bool_), None
    if threshold.max_drop_pp is not None:
        require_split(dataset, HOLDOUT, "router.threshold.max_drop_pp")
        held = _held_out(system, reference, dataset, recipe.router.fit_images, progress)
        assert held is not None
        scores, correct = held.scores, held.correct()
    return fit_policy(branches, scores, correct, **vars(threshold)), held


def equalise_system(system: System, routing: Routing, images: CalibrationImages, spec: EqualiseSpec) -> System:
    """The system with LayerNorm's scales folded; the reference stays what it was.

    Raises:
        ExportError: a logit changed by more than rounding.
    """
    recipe = system.model.recipe
    model = equalised(system.model, measure_ranges(system.model, _by_branch(recipe, routing, images)), spec)
    error = require_same(system.model, model, _by_branch(recipe, routing, images, _CHECKED))
    said = f"alpha {spec.alpha:g}" + (", shifted" if spec.shift else "")
    note = f"LayerNorm's scales were equalised ({said}); fp32 logits changed by {error:.1e} at most on calibration images"
    notes = (*system.notes, note)
    return dataclasses.replace(system, model=model, sources=graph_sources(model), notes=notes, equalised=True)


def _by_branch(
    recipe: Recipe, routing: Routing, images: CalibrationImages, limit: int | None = None
) -> Mapping[str, Iterator[torch.Tensor]]:
    """Calibration images in batches by branch, `limit` at most of each."""
    size = recipe.model.image_size
    shares = {b.name: share for b, share in zip(recipe.branches, routing.shares, strict=True)}
    return {name: _batches(images.tensors(share, size, limit)) for name, share in shares.items()}


def _batches(tensors: Iterator[Tensor]) -> Iterator[torch.Tensor]:
    while batch := list(islice(tensors, _BATCH)):
        yield torch.from_numpy(np.concatenate(batch))
