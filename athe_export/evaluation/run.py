"""`evaluate`: from recipes to one document of everything that was measured; what is there already is not measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athe_export.data.source import Dataset, open_dataset, require_split
from athe_export.errors import (
    AtheExportError,
    CalibrationError,
    CheckpointError,
    DatasetError,
    ExportError,
    MissingDependency,
    PowerLogError,
    RecipeError,
    UsageError,
)
from athe_export.evaluation.answers import Answers, Ids, answer_cell
from athe_export.evaluation.bundles import Build, RecipeBundle, obtain
from athe_export.evaluation.cells import Cells
from athe_export.evaluation.corruptions import ALL, Corruption
from athe_export.evaluation.document import document_of
from athe_export.evaluation.energy import Energies, Metered, energies
from athe_export.evaluation.latency import latency_cells
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.evaluation.rows import Measured
from athe_export.evaluation.subset import BalancedSubset, balanced_subset
from athe_export.evaluation.systems import System, systems_of
from athe_export.evaluation.variants import dense_of
from athe_export.plan import plan_build
from athe_export.recipe import RecipeFile
from athe_export.stages import Watcher

_OF_ONE_RECIPE = (RecipeError, CheckpointError, CalibrationError, ExportError)  # anything else would stop the others too


@dataclass(frozen=True)
class Job:
    """What is evaluated, and with what.

    Attributes:
        files: the recipes, each with a name of its own.
        output: folder of the evaluation: cells, bundles that had to be built, recipes that were made, the report.
        search: folders where a bundle may be already, below the recipe's name.
        metered: a power meter's log that energy is told by.
        build: builds, gates and promotes a recipe.
        command: as it was given, for provenance.
    """

    files: tuple[RecipeFile, ...]
    output: Path
    plan: EvaluationPlan
    build: Build
    command: str
    data_root: Path | None = None
    search: tuple[Path, ...] = ()
    metered: Metered | None = None


@dataclass(frozen=True)
class Evaluation:
    """The document, and the dataset that its images are of.

    Attributes:
        not_built: why recipes are missing from it, in their order.
        refused: why the power log could not be joined.
    """

    document: Mapping[str, Any]
    dataset: Dataset
    not_built: tuple[AtheExportError, ...]
    refused: PowerLogError | None = None


def evaluate(job: Job, watch: Watcher) -> Evaluation:
    """Runs what of the experiment has not been run yet.

    Raises:
        UsageError: recipes share a name, or are of different data.
        CheckpointError, CalibrationError: a file that a recipe names is missing; found before anything is built.
        DatasetError: a bundle is of another dataset than the one given.
        AtheExportError: of the first recipe, where none could be built; or what would stop every build.
    """
    _require_comparable(job)
    dataset = _dataset(job.files[0], job, watch)
    files, dense, made = _with_dense(job)
    bundles, not_built = _bundles(files, made, dataset, job, watch)
    systems, left_out = systems_of(bundles, job.plan)
    if not systems:
        raise MissingDependency("no system of these recipes can run here: " + "; ".join(x["why"] for x in left_out))
    cells = Cells(job.output / "cells", job.command)
    ids = _ids(dataset, bundles[0].manifest.gate["split"], job.plan)
    trained = [s for s in systems if s.of.trained]
    answers = {s.key: _answered(cells, s, ids, dataset, None, job, watch) for s in trained}
    subset, why = _subset(bundles, dense, ids, job.plan)
    robust_ids = _drawn(ids, job.plan.robustness_images, job.plan.seed)
    robust = {s.key: _robustness(cells, s, robust_ids, dataset, job, watch) for s in trained}
    watch.stage("latency")
    photos = _drawn(ids, job.plan.photos, job.plan.seed)
    latencies = latency_cells(cells, systems, dataset, photos, job.plan, watch.progress)
    energy = _energies(cells, systems, photos, dataset, job, watch)
    measured = Measured(systems, answers, latencies, subset, dense, energy)
    images = {"all": ids, "robustness": robust_ids, "latency": photos}
    document = document_of(job, dataset, bundles, not_built, left_out, measured, robust, images, cells, why)
    return Evaluation(document, dataset, tuple(error for _, error in not_built), energy.error)


def _energies(cells: Cells, systems: Sequence[System], ids: Ids, dataset: Dataset, job: Job, watch: Watcher) -> Energies:
    if job.metered is None:
        return Energies()
    watch.stage("energy")

    def progress(share: float) -> None:
        watch.progress("pattern of load", int(100 * share), 100)

    return energies(cells, systems, dataset, ids, job.plan, job.metered, progress)


def _require_comparable(job: Job) -> None:
    """All that can be wrong with the recipes together, before anything is written.

    Raises:
        UsageError: two have one name, or they are of different data.
        CheckpointError, CalibrationError: a file that one names is missing.
    """
    names, first = [file.recipe.name for file in job.files], job.files[0]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two recipes are called {', '.join(twice)}", where="RECIPE", remedy="give each a name of its own")
    for file in job.files:
        if _data_of(file) != _data_of(first):
            raise UsageError(
                f"{first.recipe.name} and {file.recipe.name} are of different data, so that nothing can be compared: "
                f"{_said(first)}, {_said(file)}",
                where=str(file.path),
                remedy="evaluate recipes of one dataset and one gate split together",
            )
        plan_build(file, job.output, job.data_root, None)


def _with_dense(job: Job) -> tuple[list[RecipeFile], str | None, str | None]:
    """The recipes with a dense one among them, its name, and the name again where it was made here.

    Raises:
        UsageError: another recipe has the name of the one that is made.
    """
    dense, made = dense_of(job.files, job.output / "recipes")
    if dense is None or not made:
        return list(job.files), dense.recipe.name if dense else None, None
    if dense.recipe.name in (file.recipe.name for file in job.files):
        raise UsageError(
            f"a recipe is called {dense.recipe.name}, which evaluate needs for the dense model",
            where=dense.recipe.name,
            remedy="give that recipe another name",
        )
    return [*job.files, dense], dense.recipe.name, dense.recipe.name


def _dataset(file: RecipeFile, job: Job, watch: Watcher) -> Dataset:
    data = file.recipe.data
    watch.stage("data")
    folder = file.resolve(data.path) if data.path else None
    dataset = open_dataset(data.dataset, job.data_root, folder, watch.progress)
    require_split(dataset, data.gate.split, "data.gate.split")
    return dataset


def _data_of(file: RecipeFile) -> tuple[object, ...]:
    data = file.recipe.data
    return data.dataset, data.gate.split, file.resolve(data.path) if data.path else None


def _said(file: RecipeFile) -> str:
    data = file.recipe.data
    return f"{data.dataset} {data.gate.split}" + (f" of {data.path}" if data.path else "")


def _bundles(
    files: Sequence[RecipeFile], made: str | None, dataset: Dataset, job: Job, watch: Watcher
) -> tuple[list[RecipeBundle], list[tuple[str, AtheExportError]]]:
    """A bundle of each recipe, and those that there is none of with the reason."""
    found: list[RecipeBundle] = []
    not_built: list[tuple[str, AtheExportError]] = []
    for file in files:
        name = file.recipe.name
        watch.stage(f"bundle of {name}")
        try:
            own = obtain(file, job.plan, job.output, job.search, job.build)
        except _OF_ONE_RECIPE as error:  # the others are worth having without it, and it is said
            not_built.append((name, error))
            continue
        if own.manifest.dataset["sha256"] != dataset.digest:
            raise DatasetError(f"the bundle is of another {dataset.name} than the one given", where=str(own.bundle.path))
        found.append(own if name != made else _as_made(own))
    if not found:
        raise not_built[0][1]
    return found, not_built


def _as_made(own: RecipeBundle) -> RecipeBundle:
    return RecipeBundle(own.file, own.built_from, own.bundle, own.reused, made=True)


def _ids(dataset: Dataset, split: str, plan: EvaluationPlan) -> Ids:
    size = dataset.size(split)
    return np.arange(size if plan.images is None else min(plan.images, size), dtype=np.int64)


def _drawn(ids: Ids, count: int, seed: int) -> Ids:
    """So many of the images, drawn without putting back, ascending."""
    return np.sort(np.random.default_rng(seed).choice(ids, min(count, len(ids)), replace=False))


def _subset(
    bundles: Sequence[RecipeBundle], dense: str | None, ids: Ids, plan: EvaluationPlan
) -> tuple[BalancedSubset | None, str | None]:
    """The balanced subset, or why there is none."""
    judge = next((b for b in bundles if b.name == dense and b.trained), None)
    if judge is None:
        return None, "there is no trained dense model to judge what is simple"
    reference = judge.reference()
    if reference is None:
        return None, f"the bundle of {judge.name} was copied without its reference, which would judge what is simple"
    found = balanced_subset(reference, ids, plan.subset_each, plan.seed, judge.name)
    return (found, None) if len(found.ids) else (None, f"{judge.name} has judged less than two images")


def _answered(
    cells: Cells, system: System, ids: Ids, dataset: Dataset, corruption: Corruption | None, job: Job, watch: Watcher
) -> Answers:
    said = f"{corruption.name} {corruption.strength}" if corruption else "answers"
    watch.stage(f"{system.key}: {said}")
    return answer_cell(cells, system, ids, dataset, corruption, job.plan.seed, watch.progress)


def _robustness(
    cells: Cells, system: System, ids: Ids, dataset: Dataset, job: Job, watch: Watcher
) -> dict[Corruption | None, Answers]:
    """Answers to the images as they are (None) and under each corruption and strength."""
    return {c: _answered(cells, system, ids, dataset, c, job, watch) for c in (None, *ALL)}
