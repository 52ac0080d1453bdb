"""A build, from the recipe to the promoted bundle: `run_build` reads like the README."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.assembly import add_golden, add_labels, described, draft_manifest
from athe_export.build_gate import ExportedGraphs, exported_graphs, gate_staged, torch_on_gate
from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import StagedBundle, staged_bundle
from athe_export.calibrators import CalibrationStudy
from athe_export.data.calibration import check_calibration_set, read_calibration_set
from athe_export.data.source import Dataset, open_dataset, require_classes, require_split
from athe_export.dense_controls import fill_controls, require_room_for_dense, staged_controls
from athe_export.errors import ExportError, GateFailed, GateInconclusive
from athe_export.graphs import target_graphs
from athe_export.held_out import require_held_out
from athe_export.layer_precision import PrecisionStudy, require_searchable
from athe_export.parity.gate import ParityReport
from athe_export.parity.limits import FAIL, PASS
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import RecipeFile
from athe_export.reference import TorchReference
from athe_export.report.gallery import shown_ids, thumbnail
from athe_export.report.html import report_html
from athe_export.router_bounds import fit_routers
from athe_export.runtime.golden import GoldenResult, check_golden
from athe_export.sharing import add_graphs
from athe_export.stages import StageTimer, Watcher
from athe_export.system import CalibrationImages, Prepared, equalise_system, fit_routing, load_system
from athe_export.targets.keep_float import require_layers


@dataclass(frozen=True)
class BuildResult:
    """A finished build: where the bundle is, its manifest, its golden self-test and the seconds each stage took."""

    output: Path
    manifest: Manifest
    golden: tuple[GoldenResult, ...]
    stages: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.output),
            "verdict": self.manifest.verdict,
            "parity": self.manifest.parity,
            "golden": [vars(g) | {"passed": g.passed} for g in self.golden],
            "frontier": self.manifest.to_json()["router"]["frontier"] if self.manifest.router else {},
            "notes": list(self.manifest.notes),
            "stages": [{"name": name, "seconds": round(seconds, 2)} for name, seconds in self.stages],
        }


def run_build(
    file: RecipeFile,
    output: Path,
    watch: Watcher,
    data_root: Path | None = None,
    checkpoint: Path | None = None,
    controls: bool = False,
) -> BuildResult:
    """Builds, gates and promotes one recipe.

    Args:
        output: the bundle folder; what is there survives unless the gate passes.
        data_root: folder that holds `cifar-100-python/`; None: the user cache.
        checkpoint: instead of the recipe's.
        controls: also write what `bench` holds the bundle against, to `<output>.controls`.

    Raises:
        GateFailed, GateInconclusive: the staging folder is kept and named.
        AtheExportError: anything else that a user can mend; nothing is left behind but an empty lock file.
    """
    timer = StageTimer(watch)
    if controls:
        require_room_for_dense(file.recipe)
    with (
        staged_bundle(output) as staged,
        exported_graphs(staged.output) as exported,
        staged_controls(staged.output, controls) as beside,
    ):
        prepared = prepare(file, data_root, checkpoint, timer)
        study, layers = CalibrationStudy(prepared, watch.progress), PrecisionStudy(prepared, watch.progress)
        graphs = _graphs(prepared, staged, exported, study, layers, timer)
        with timer.stage("golden"):
            add_labels(staged, prepared)
            manifest = staged.finish(layers.noted(draft_manifest(prepared, graphs, study.to_json())))
            manifest = staged.finish(fit_routers(staged, prepared, manifest))
            manifest = add_golden(staged, prepared, manifest)
        report = _gate(prepared, staged, exported, manifest, timer) if prepared.system.trained else None
        with timer.stage("verify"):
            manifest, golden = _finish(staged, prepared, manifest, report)
        result = BuildResult(output, manifest, golden, tuple(timer.seconds))
        if report is not None and report.verdict != PASS:
            staged.keep()
            raise _missed(report, dataclasses.replace(result, output=staged.folder))
        if beside is not None:
            fill_controls(beside, prepared, open_bundle(staged.folder), exported, timer)
        staged.promote()
        if beside is not None:
            beside.promote()
    return dataclasses.replace(result, stages=tuple(timer.seconds))


def prepare(file: RecipeFile, data_root: Path | None, checkpoint: Path | None, timer: StageTimer) -> Prepared:
    """Data, weights and routing: all that can be wrong with the inputs is found here, before anything is traced.

    Raises:
        AtheExportError: with the recipe, the dataset, the calibration set or the checkpoint.
    """
    data = file.recipe.data
    with timer.stage("data"):
        folder = file.resolve(data.path) if data.path else None
        dataset = open_dataset(data.dataset, data_root, folder, timer.watch.progress)
        require_split(dataset, data.gate.split, "data.gate.split")
        require_classes(dataset, file.recipe.model.classes)
        require_held_out(file.recipe, dataset)
        images = _calibration(file, dataset)
    with timer.stage("checkpoint"):
        path = str(checkpoint.resolve()) if checkpoint else file.recipe.checkpoint.path
        system = load_system(file, images, file.recipe.checkpoint.random_seed, path)
        reference = TorchReference(system.sources, images.preprocessing)
        require_layers(file.recipe.targets, {source.role: source.layers for source in system.sources})
        require_searchable(file.recipe, system.trained)
    with timer.stage("routing"):
        routing = fit_routing(file, system, reference, images, dataset, timer.watch.progress)
    if file.recipe.equalise is not None:
        with timer.stage("equalise"):  # what is exported; the reference stays the checkpoint as it was
            system = equalise_system(system, routing, images, file.recipe.equalise)
    return Prepared(file, dataset, images, system, reference, routing)


def _calibration(file: RecipeFile, dataset: Dataset) -> CalibrationImages:
    data, path = file.recipe.data, file.resolve(file.recipe.data.calibration)
    found = read_calibration_set(path)
    check_calibration_set(found, path, dataset, data.gate.split, len(_gate_ids(file, dataset)))
    preprocessing = Preprocessing(**vars(data.preprocessing))
    sources = tuple(preprocessing.source(dataset.image(found.split, i)) for i in found.ids)
    labels = tuple(int(label) for label in dataset.labels(found.split)[list(found.ids)])
    return CalibrationImages(found, sources, preprocessing, labels)


def _gate_ids(file: RecipeFile, dataset: Dataset) -> npt.NDArray[np.int64]:
    gate, size = file.recipe.data.gate, dataset.size(file.recipe.data.gate.split)
    return np.arange(size if gate.limit is None else min(gate.limit, size), dtype=np.int64)


def _graphs(
    prepared: Prepared,
    staged: StagedBundle,
    exported: ExportedGraphs,
    study: CalibrationStudy,
    layers: PrecisionStudy,
    timer: StageTimer,
) -> tuple[GraphEntry, ...]:
    """Every target asked for, every role, every precision."""
    entries: list[GraphEntry] = []
    for target in prepared.file.recipe.targets.names:
        graphs = [described(target, graph) for graph in target_graphs(prepared, target, exported, study, layers, timer)]
        with timer.stage(f"{target}: write"):
            entries += add_graphs(staged, graphs, prepared.file.recipe.share_weights)
    return tuple(entries)


def _gate(
    prepared: Prepared, staged: StagedBundle, exported: ExportedGraphs, manifest: Manifest, timer: StageTimer
) -> ParityReport:
    """The staged bundle through the device's own runtime, against torch on the same images, hop by hop."""
    progress = timer.watch.progress
    with timer.stage("reference"):
        traced = torch_on_gate(prepared, manifest, _gate_ids(prepared.file, prepared.dataset), progress)
        staged.add("reference.npz", "reference", traced.reference.to_bytes(), optional=True)
    with timer.stage("parity"):
        staged.finish(manifest)
        return gate_staged(prepared, open_bundle(staged.folder), exported, traced, progress)


def _finish(
    staged: StagedBundle, prepared: Prepared, manifest: Manifest, report: ParityReport | None
) -> tuple[Manifest, tuple[GoldenResult, ...]]:
    """Adds the report, writes the final manifest and checks the staged bundle as `verify` would."""
    if report is not None:
        manifest = manifest._replace(verdict=report.verdict, parity=report.to_json())
    images, split = prepared.dataset, manifest.gate["split"]
    thumbnails = {i: thumbnail(images.image(split, i)) for i in shown_ids(manifest.parity)}
    staged.add("report.html", "report", report_html(manifest, images.class_names, thumbnails).encode())
    manifest = staged.finish(manifest)
    bundle = open_bundle(staged.folder)
    bundle.check()
    results, not_run = check_golden(bundle)
    if not_run or not all(r.bit_equal for r in results):
        raise ExportError("the staged bundle does not repeat its own golden outputs", where=str(staged.folder))
    return manifest, results


def _missed(report: ParityReport, result: BuildResult) -> GateFailed | GateInconclusive:
    error, word = (GateFailed, "failed") if report.verdict == FAIL else (GateInconclusive, "is inconclusive")
    return error(
        f"the parity gate {word}:\n" + "\n".join(f"  {line}" for line in report.broken),
        where=str(result.output),
        remedy="the staging folder is kept for inspection and the previous bundle is untouched; keep sensitive "
        "layers float (keep_float of the target's quantize section), change the calibrator, or use more gate images",
        report=result.to_json(),
    )
