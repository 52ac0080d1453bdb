"""What a build does about single layers: measures what int8 costs each, and searches those to keep float.

Both read held-out training images alone. The graphs are made by the target's own `quantize`, so that what is measured is
what the bundle would hold. The router is left as the recipe has it: images go where the reference sends them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from athe_export.assembly import TargetGraph
from athe_export.bundle.manifest import Manifest
from athe_export.calibrators import Job
from athe_export.data.source import Progress
from athe_export.errors import RecipeError
from athe_export.held_out import ROUTER, HeldOut, draw_held_out
from athe_export.precision.search import Found, search
from athe_export.precision.sensitivity import BranchSensitivity, measure, rank
from athe_export.precision.subject import Clock, Subject
from athe_export.precision.trial import Bench, Limits
from athe_export.preprocessing import GraphInput
from athe_export.recipe import AutoPrecisionSpec, LitertQuantizeSpec, OnnxQuantizeSpec, Recipe, SensitivitySpec
from athe_export.runtime.engines import ENGINES, Session
from athe_export.stages import StageTimer
from athe_export.system import HOLDOUT, Prepared
from athe_export.targets.keep_float import kept_float
from athe_export.targets.litert.graph import LitertGraph
from athe_export.targets.onnx.graph import OnnxGraph, weighted_nodes
from athe_export.targets.onnx.quantize import OP_TYPES

RANKING_IMAGES = 256  # held-out images that layers are ranked on before a search: the ratio settles on few
RANKING_CALIBRATION = 64  # calibration images of a graph with one int8 layer, of which there are as many as layers
AnySpec = OnnxQuantizeSpec | LitertQuantizeSpec
Spec = TypeVar("Spec", bound=AnySpec)


class PrecisionStudy:
    """What a build measures of single layers, target by target, and what it decides by it."""

    def __init__(self, prepared: Prepared, progress: Progress) -> None:
        self._prepared, self._progress = prepared, progress
        self._records: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []

    def settled(self, jobs: Sequence[Job], spec: Spec, timer: StageTimer) -> Spec:
        """A target's quantization with the layers that are to stay float by name, where the recipe has them searched.

        Args:
            jobs: every graph of the target that becomes int8.
            spec: with a calibrator by name.

        Raises:
            RecipeError: a branch gets no image of the held-out split.
        """
        target, auto = jobs[0].target, spec.auto
        record = self._records.setdefault(target, {})
        if spec.sensitivity is not None:
            with timer.stage(f"{target}: sensitivity"):
                record["sensitivity"] = self._sensitivity(jobs, spec, spec.sensitivity)
        if auto is None:
            return spec
        with timer.stage(f"{target}: search"):
            found = self._search(jobs, spec, auto)
        record["search"] = {"split": HOLDOUT, "minutes": auto.minutes, "kept_by_recipe": list(spec.keep_float)}
        record["search"] |= found.to_json()
        self._notes.append(f"{target}: {found.said()}")
        return with_kept(spec, found.keep_float)

    def to_json(self) -> dict[str, Any]:
        """The manifest's `precision`: records by target, of those for which something was asked."""
        return {target: record for target, record in self._records.items() if record}

    def noted(self, manifest: Manifest) -> Manifest:
        """The manifest with everything that was measured and decided."""
        return manifest._replace(precision=self.to_json() or None, notes=(*manifest.notes, *self._notes))

    def _sensitivity(self, jobs: Sequence[Job], spec: AnySpec, asked: SensitivitySpec) -> dict[str, Any]:
        found = self._ranked(jobs, spec, "sensitivity", asked.images, asked.by, Clock())
        return {
            "split": HOLDOUT,
            "by": asked.by,
            "calibration_images": RANKING_CALIBRATION,
            "branches": {branch.role: branch.to_json() for branch in found},
        }

    def _search(self, jobs: Sequence[Job], spec: AnySpec, auto: AutoPrecisionSpec) -> Found:
        """Ctrl-C ends the search, not the build: the best so far is used."""
        prepared, where = self._prepared, f"targets.{jobs[0].target}.quantize.auto"
        held = draw_held_out(prepared, where, auto.images or prepared.dataset.size(HOLDOUT))
        limits = Limits(auto.max_top1_drop_pp, auto.max_slowdown, prepared.file.recipe.parity.confidence)
        bench = Bench(_subjects(jobs, spec, held, None), limits, self._progress)

        def ranking(clock: Clock) -> tuple[str, ...]:
            return rank(self._ranked(jobs, spec, "auto", RANKING_IMAGES, "layer", clock), bench.shares)

        return search(bench, ranking, auto.minutes)

    def _ranked(
        self, jobs: Sequence[Job], spec: AnySpec, key: str, images: int, by: str, clock: Clock
    ) -> list[BranchSensitivity]:
        held = draw_held_out(self._prepared, f"targets.{jobs[0].target}.quantize.{key}", images)
        subjects = _subjects(jobs, spec, held, RANKING_CALIBRATION)
        return [measure(subject, by, clock, self._progress) for subject in subjects]


def require_searchable(recipe: Recipe, trained: bool) -> None:
    """Raises RecipeError where layers are to be searched by the accuracy of weights that were never trained."""
    for target in recipe.targets.names:
        if getattr(recipe.targets, target).quantize.auto is not None and not trained:
            raise RecipeError(
                "the weights were never trained, so there is no accuracy to search by",
                where=f"targets.{target}.quantize.auto",
                remedy="give a trained checkpoint, or leave this key out",
            )


def with_kept(spec: Spec, keep: Iterable[str]) -> Spec:
    """The same quantization with these layers float besides those of the recipe."""
    return dataclasses.replace(spec, keep_float=tuple(dict.fromkeys((*spec.keep_float, *keep))))


def int8_layers(graph: TargetGraph, spec: AnySpec) -> tuple[str, ...]:
    """Torch module names of a branch's layers that become int8, in the order they run in."""
    names: list[str] = []
    if isinstance(graph, OnnxGraph):
        names = [node.name for node, _ in weighted_nodes(graph.model) if node.op_type in OP_TYPES]
    elif isinstance(graph, LitertGraph):
        names = [op.name for op in graph.ops if op.has_weight]
    kept = set(kept_float(names, spec.keep_float))
    return tuple(name for name in names if name not in kept)


def subject_of(
    job: Job, spec: AnySpec, images: Callable[[], Iterable[GraphInput]], labels: Any, calibration: int | None = None
) -> Subject:
    """A branch's graph as a subject.

    Args:
        job: how it is quantized.
        spec: with a calibrator by name.
        images: its held-out images, as its graphs take them, anew at each call.
        labels: of those, int64 [n].
        calibration: how many of the branch's calibration images a graph is made with; None: all.
    """

    engine = ENGINES[job.target]

    def quantized(keep: tuple[str, ...]) -> Session:
        return engine(job.quantize(with_kept(spec, keep), islice(job.images(), calibration)).content)

    return Subject(job.role, int8_layers(job.graph, spec), engine(job.graph.content), quantized, images, labels)


def _subjects(jobs: Sequence[Job], spec: AnySpec, held: HeldOut, calibration: int | None) -> tuple[Subject, ...]:
    return tuple(
        subject_of(
            job, spec, partial(held.pixels, job.role, job.image_size), held.labels[held.positions(job.role)], calibration
        )
        for job in jobs
        if job.role != ROUTER
    )
