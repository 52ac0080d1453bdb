"""Which calibrator suits a graph, and how much int8 hangs on the images it is calibrated on: both measured in a build.

- `calibrator: auto` quantizes a target's graphs with every calibrator that it has and keeps the best on held-out images.
- `parity.stability_draws` quantizes it again with other calibration images, drawn disjoint, and records what that changes.

Both hold an int8 graph against the fp32 graph of the same target. Images go to the branch that the reference sends them to.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from athe_export.assembly import TargetGraph
from athe_export.data.calibration import BranchShare, disjoint_draws, split_by_branch
from athe_export.data.source import Progress
from athe_export.held_out import ROUTER, HeldOut, Outputs, Trial, draw_held_out, outputs_on
from athe_export.preprocessing import GraphInput
from athe_export.recipe import LitertQuantizeSpec, OnnxQuantizeSpec
from athe_export.runtime.engines import ENGINES
from athe_export.system import CalibrationImages, Prepared

AUTO = "auto"
DYNAMIC = "dynamic_wi8_afp32"
Spec = TypeVar("Spec", OnnxQuantizeSpec, LitertQuantizeSpec)


@dataclass(frozen=True)
class Job:
    """A graph to quantize: its target and role, input size in pixels, how it is quantized and its calibration images,
    as its graphs take them, anew at each call."""

    target: str
    role: str
    image_size: int
    graph: TargetGraph
    quantize: Callable[[Any, Iterable[GraphInput]], TargetGraph]
    images: Callable[[], Iterable[GraphInput]]


@dataclass(frozen=True)
class Choice:
    """What `auto` chose for a target, and all that it tried, by calibrator and role."""

    target: str
    calibrator: str
    trials: Mapping[str, Mapping[str, Trial]]

    def to_json(self) -> dict[str, Any]:
        trials = [
            {"calibrator": name, "agreement": agreement_of(roles), "sqnr_db": noise_of(roles)}
            | {"roles": {role: trial.to_json() for role, trial in roles.items()}}
            for name, roles in self.trials.items()
        ]
        return {"target": self.target, "calibrator": self.calibrator, "trials": trials}


def calibrators_of(spec: type[OnnxQuantizeSpec] | type[LitertQuantizeSpec]) -> tuple[str, ...]:
    """The calibrators that a target has, as its part of the recipe names them."""
    return tuple(c for c in typing.get_args(typing.get_type_hints(spec)["calibrator"]) if c != AUTO)


def agreement_of(roles: Mapping[str, Trial]) -> float:
    """Share of images with the same answer over all branches, times that which the router sends to the same branch."""
    branches = [trial for role, trial in roles.items() if role != ROUTER]
    images = sum(t.images for t in branches)
    same = sum(t.agreement * t.images for t in branches) / images if images else 1.0
    return same * (roles[ROUTER].agreement if ROUTER in roles else 1.0)


def noise_of(roles: Mapping[str, Trial]) -> float | None:
    """Signal-to-quantization-noise ratio in dB, the mean over all graphs weighted by images; None: no noise at all."""
    known = [(t.sqnr_db, t.images) for t in roles.values() if t.sqnr_db is not None]
    return sum(db * n for db, n in known) / sum(n for _, n in known) if known else None


def best_of(trials: Mapping[str, Mapping[str, Trial]]) -> str:
    """Of those whose agreement is within one standard error of the highest, the one with the least noise.

    Agreement is what counts, but on some hundred images it tells close calibrators apart by chance; the noise of the logits
    settles sooner. The one-standard-error rule is that of Breiman et al., Classification and Regression Trees, 1984,
    chapter 3.

    Args:
        trials: by calibrator and role.
    """
    images = max(sum(t.images for role, t in roles.items() if role != ROUTER) for roles in trials.values())
    agreement = {name: agreement_of(roles) for name, roles in trials.items()}
    top = max(agreement.values())
    least = top - math.sqrt(top * (1 - top) / max(1, images))
    close = [name for name in trials if agreement[name] >= least]
    return max(close, key=lambda name: math.inf if (noise := noise_of(trials[name])) is None else noise)


class CalibrationStudy:
    """What a build measures of its calibration, graph by graph; held-out images are drawn when first asked for."""

    def __init__(self, prepared: Prepared, progress: Progress) -> None:
        self._prepared, self._progress = prepared, progress
        self._held: HeldOut | None = None
        self._draws: tuple[tuple[CalibrationImages, tuple[BranchShare, ...]], ...] | None = None
        self._exact: dict[tuple[str, str], Outputs] = {}
        self._used: dict[str, str] = {}
        self._choices: list[Choice] = []
        self._drawn: dict[str, dict[str, list[Trial]]] = {}  # by target and role; the recipe's own set first

    def settled(self, jobs: Sequence[Job], spec: Spec) -> Spec:
        """A target's quantization with a calibrator by name: the best of all in place of `auto`.

        Args:
            jobs: every graph of the target that becomes int8.

        Raises:
            RecipeError: there are no held-out images, or none for a branch.
        """
        if jobs and spec.calibrator == AUTO:
            spec = _named(spec, self._chosen(jobs, spec))
        if any(not _reads_nothing(job.role, spec) for job in jobs):
            self._used[jobs[0].target] = spec.calibrator
        return spec

    def _chosen(self, jobs: Sequence[Job], spec: Spec) -> str:
        held = self._held_out(f"targets.{jobs[0].target}.quantize.calibrator")
        trials: dict[str, dict[str, Trial]] = {}
        for name in calibrators_of(type(spec)):
            graphs = ((job, job.quantize(_named(spec, name), job.images())) for job in jobs)
            trials[name] = {job.role: self._trial(job, held, graph, name) for job, graph in graphs}
        choice = Choice(jobs[0].target, best_of(trials), trials)
        self._choices.append(choice)
        return choice.calibrator

    def measure_stability(self, job: Job, spec: Spec, quantized: TargetGraph) -> None:
        """Quantizes the graph with other calibration images too, where the recipe asks for it and the scheme reads any.

        Args:
            quantized: the graph by the recipe's own calibration images.

        Raises:
            CalibrationError: there are too few other images, or a branch gets none.
            RecipeError: there are no held-out images, or none for this branch.
        """
        if not self._prepared.file.recipe.parity.stability_draws or _reads_nothing(job.role, spec):
            return
        held = self._held_out("parity.stability_draws")
        trials = self._drawn.setdefault(job.target, {}).setdefault(job.role, [])
        trials.append(self._trial(job, held, quantized, "the recipe's calibration set"))
        for number, (images, shares) in enumerate(self._other_draws(held), 1):
            share = None if job.role == ROUTER else shares[held.branches.index(job.role)]
            graph = job.quantize(spec, images.pixels(share, job.image_size))
            trials.append(self._trial(job, held, graph, f"draw {number}"))

    def to_json(self) -> dict[str, Any]:
        """What stands in the manifest beside the calibration set."""
        return {
            "calibrators": self._used,
            "choices": [choice.to_json() for choice in self._choices],
            "stability": self._stability(),
        }

    def _stability(self) -> dict[str, Any] | None:
        recipe = self._prepared.file.recipe
        if not recipe.parity.stability_draws:
            return None
        return {
            "other_draws": recipe.parity.stability_draws,
            "calibration_images": len(self._prepared.images.sources),
            "held_out_images": 0 if self._held is None else len(self._held.sources),
            "targets": {target: _spread(by_role) for target, by_role in self._drawn.items()},
            "not_measured": {
                target: "no graph of this target reads calibration images"
                for target in recipe.targets.names
                if target not in self._drawn
            },
        }

    def _trial(self, job: Job, held: HeldOut, graph: TargetGraph, said: str) -> Trial:
        key, said = (job.target, job.role), f"{job.target} {job.role}: {said}"
        if key not in self._exact:
            self._exact[key] = self._outputs(job, held, job.graph, f"{job.target} {job.role}: fp32")
        return held.compare(job.role, self._exact[key], self._outputs(job, held, graph, said))

    def _outputs(self, job: Job, held: HeldOut, graph: TargetGraph, said: str) -> Outputs:
        session = ENGINES[job.target](graph.content)
        return outputs_on(session, held, job.role, job.image_size, said, self._progress)

    def _held_out(self, key: str) -> HeldOut:
        if self._held is None:
            self._held = draw_held_out(self._prepared, key)
        return self._held

    def _other_draws(self, held: HeldOut) -> tuple[tuple[CalibrationImages, tuple[BranchShare, ...]], ...]:
        if self._draws is None:
            self._draws = tuple(_drawn(self._prepared, held))
        return self._draws


def _named(spec: Spec, calibrator: str) -> Spec:
    return dataclasses.replace(spec, calibrator=calibrator)  # type: ignore[arg-type]


def _reads_nothing(role: str, spec: OnnxQuantizeSpec | LitertQuantizeSpec) -> bool:
    """Whether calibration makes no difference; a LiteRT router is static whatever the scheme."""
    return spec.scheme == DYNAMIC and role != ROUTER


def _drawn(prepared: Prepared, held: HeldOut) -> Iterator[tuple[CalibrationImages, tuple[BranchShare, ...]]]:
    """Further calibration sets, without an image of the gate or of the held-out sample, split by branch as the first is."""
    recipe, dataset, own = prepared.file.recipe, prepared.dataset, prepared.images
    gate = recipe.data.gate
    size = dataset.size(gate.split) if gate.limit is None else min(gate.limit, dataset.size(gate.split))
    avoid = [dataset.image(gate.split, i) for i in range(size)] + [dataset.image(held.split, int(i)) for i in held.ids]
    for found in disjoint_draws(own.found, dataset, avoid, recipe.parity.stability_draws):
        sources = tuple(own.preprocessing.source(dataset.image(found.split, i)) for i in found.ids)
        images = CalibrationImages(found, sources, own.preprocessing)
        shares: tuple[BranchShare, ...] = (BranchShare(tuple(range(len(sources))), ()),)
        if held.policy is not None:
            scores, path = prepared.reference.scores(sources), prepared.file.resolve(recipe.data.calibration)
            shares = split_by_branch(found, scores, held.policy.branches_of(scores), held.branches, path)
        yield images, shares


def _spread(by_role: Mapping[str, list[Trial]]) -> dict[str, Any]:
    """Each draw's agreement and top-1 over all held-out images, by branch, and how far apart the draws are."""
    branches = [trials for role, trials in by_role.items() if role != ROUTER]
    routers = by_role.get(ROUTER)
    draws = []
    for index in range(len(next(iter(by_role.values())))):
        own = [trials[index] for trials in branches]
        images = sum(t.images for t in own)
        draws.append(
            {
                "agreement": sum(t.agreement * t.images for t in own) / images if images else None,
                "top1": sum(t.correct or 0 for t in own) / images if images else None,
                "router_agreement": routers[index].agreement if routers else None,
            }
        )
    names = {"agreement": "agreement_spread_pp", "top1": "top1_spread_pp", "router_agreement": "router_agreement_spread_pp"}
    return {"draws": draws} | {said: _apart([draw[name] for draw in draws]) for name, said in names.items()}


def _apart(values: list[float | None]) -> float | None:
    """Largest less smallest, in percentage points; None where nothing was measured."""
    known = [value for value in values if value is not None]
    return 100 * (max(known) - min(known)) if known else None
