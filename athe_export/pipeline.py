"""A build, from the recipe to the promoted bundle: `run_build` reads like the README."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from athe_export.assembly import TargetGraph, add_golden, add_graph, add_labels, draft_manifest, match_routers
from athe_export.branches import BranchGraphSource
from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import StagedBundle, staged_bundle
from athe_export.data.calibration import check_calibration_set, read_calibration_set
from athe_export.data.source import Dataset, open_dataset, require_classes, require_split
from athe_export.errors import ExportError, GateFailed, GateInconclusive
from athe_export.parity.gate import FAIL, PASS, ParityReport
from athe_export.parity.run import run_gate
from athe_export.preprocessing import Preprocessing, Tensor
from athe_export.recipe import RecipeFile
from athe_export.reference import TorchReference
from athe_export.report.html import report_html
from athe_export.runtime.golden import check_golden
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.system import CalibrationImages, Prepared, fit_routing, load_system
from athe_export.targets.equality import require_equal
from athe_export.targets.keep_float import kept_float, require_layers
from athe_export.targets.litert.export import export as litert_export
from athe_export.targets.litert.quantize import quantize as litert_quantize
from athe_export.targets.onnx.export import export as onnx_export
from athe_export.targets.onnx.quantize import quantize as onnx_quantize
from athe_export.targets.onnx.simplify import simplify

CHECK_IMAGES = 4  # calibration images on which every fp32 graph is held against torch


class Watcher(Protocol):
    """Where a build tells what it is doing."""

    def stage(self, name: str) -> None: ...

    def progress(self, step: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class BuildResult:
    """A finished build: where the bundle is, its manifest and the seconds each stage took."""

    output: Path
    manifest: Manifest
    stages: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.output),
            "verdict": self.manifest.verdict,
            "parity": self.manifest.parity,
            "notes": list(self.manifest.notes),
            "stages": [{"name": name, "seconds": round(seconds, 2)} for name, seconds in self.stages],
        }


def run_build(
    file: RecipeFile, output: Path, watch: Watcher, data_root: Path | None = None, checkpoint: Path | None = None
) -> BuildResult:
    """Builds, gates and promotes one recipe.

    Args:
        output: the bundle folder; what is there survives unless the gate passes.
        data_root: folder that holds `cifar-100-python/`; None: the user cache.
        checkpoint: instead of the recipe's.

    Raises:
        GateFailed, GateInconclusive: the staging folder is kept and named.
        AtheExportError: anything else that a user can mend; nothing is left behind but an empty lock file.
    """
    timer = _StageTimer(watch)
    with staged_bundle(output) as staged:
        prepared = _prepare(file, data_root, checkpoint, timer)
        graphs = _graphs(prepared, staged, timer)
        with timer.stage("golden"):
            add_labels(staged, prepared)
            manifest = staged.finish(draft_manifest(prepared, graphs))
            manifest = staged.finish(match_routers(staged, prepared, manifest))
            manifest = add_golden(staged, prepared, manifest)
        report = _gate(prepared, staged, manifest, timer) if prepared.system.trained else None
        with timer.stage("verify"):
            manifest = _finish(staged, manifest, report)
        result = BuildResult(output, manifest, tuple(timer.seconds))
        if report is not None and report.verdict != PASS:
            staged.keep()
            raise _missed(report, dataclasses.replace(result, output=staged.folder))
        staged.promote()
    return result


def _prepare(file: RecipeFile, data_root: Path | None, checkpoint: Path | None, timer: _StageTimer) -> Prepared:
    """Data, weights and routing: all that can be wrong with the inputs is found here, before anything is traced."""
    data = file.recipe.data
    with timer.stage("data"):
        folder = file.resolve(data.path) if data.path else None
        dataset = open_dataset(data.dataset, data_root, folder, timer.watch.progress)
        require_split(dataset, data.gate.split, "data.gate.split")
        require_classes(dataset, file.recipe.model.classes)
        images = _calibration(file, dataset)
    with timer.stage("checkpoint"):
        path = str(checkpoint.resolve()) if checkpoint else file.recipe.checkpoint.path
        system = load_system(file, images, file.recipe.checkpoint.random_seed, path)
        reference = TorchReference(system.sources, images.preprocessing)
        require_layers(file.recipe.targets, {source.role: source.layers for source in system.sources})
    with timer.stage("routing"):
        routing = fit_routing(file, system, reference, images, dataset, timer.watch.progress)
    return Prepared(file, dataset, images, system, reference, routing)


def _calibration(file: RecipeFile, dataset: Dataset) -> CalibrationImages:
    data, path = file.recipe.data, file.resolve(file.recipe.data.calibration)
    found = read_calibration_set(path)
    check_calibration_set(found, path, dataset, data.gate.split, len(_gate_ids(file, dataset)))
    preprocessing = Preprocessing(**vars(data.preprocessing))
    sources = tuple(preprocessing.source(dataset.image(found.split, i)) for i in found.ids)
    return CalibrationImages(found, sources, preprocessing)


def _gate_ids(file: RecipeFile, dataset: Dataset) -> npt.NDArray[np.int64]:
    gate, size = file.recipe.data.gate, dataset.size(file.recipe.data.gate.split)
    return np.arange(size if gate.limit is None else min(gate.limit, size), dtype=np.int64)


def _graphs(prepared: Prepared, staged: StagedBundle, timer: _StageTimer) -> tuple[GraphEntry, ...]:
    """Every target asked for, every role, every precision."""
    make = {"onnx": _onnx_graphs, "litert": _litert_graphs}
    return tuple(
        add_graph(staged, target, graph)
        for target in prepared.file.recipe.targets.names
        for source in prepared.system.sources
        for graph in make[target](prepared, source, timer)
    )


def _onnx_graphs(prepared: Prepared, source: BranchGraphSource, timer: _StageTimer) -> Iterator[TargetGraph]:
    """Export, simplify, quantize; the router stays float, where ONNX Runtime's int8 does not pay."""
    spec = prepared.file.recipe.targets.onnx
    assert spec is not None
    with timer.stage(f"onnx: export {source.role}"):
        checked = _check_images(prepared, source)
        graph = simplify(onnx_export(source, spec.opset, checked))
        require_equal(OnnxSession(graph.content), source, checked, "simplification")
    if "fp32" in spec.precisions or source.role == "router":
        yield graph
    if "int8" in spec.precisions and source.role != "router":
        with timer.stage(f"onnx: quantize {source.role}"):
            quantized = onnx_quantize(graph, spec.quantize, _calibration_tensors(prepared, source))
        yield quantized


def _litert_graphs(prepared: Prepared, source: BranchGraphSource, timer: _StageTimer) -> Iterator[TargetGraph]:
    """Export, quantize; a router that the recipe keeps float altogether is there once."""
    spec = prepared.file.recipe.targets.litert
    assert spec is not None
    with timer.stage(f"litert: export {source.role}"):
        graph = litert_export(source, _check_images(prepared, source))
    kept = len(kept_float(source.layers, spec.quantize.keep_float)) == len(source.layers)
    if "fp32" in spec.precisions or kept:
        yield graph
    if "int8" in spec.precisions and not kept:
        with timer.stage(f"litert: quantize {source.role}"):
            quantized = litert_quantize(graph, spec.quantize, _calibration_tensors(prepared, source))
        yield quantized


def _check_images(prepared: Prepared, source: BranchGraphSource) -> tuple[Tensor, ...]:
    return tuple(prepared.images.tensors(None, source.image_size, CHECK_IMAGES))


def _calibration_tensors(prepared: Prepared, source: BranchGraphSource) -> Iterator[Tensor]:
    """A branch is calibrated on images that are routed to it, the router on all."""
    names = [b.name for b in prepared.file.recipe.branches]
    share = None if source.role == "router" else prepared.routing.shares[names.index(source.role)]
    return prepared.images.tensors(share, source.image_size)


def _gate(prepared: Prepared, staged: StagedBundle, manifest: Manifest, timer: _StageTimer) -> ParityReport:
    """The staged bundle through the device's own runtime, against torch on the same images."""
    progress = timer.watch.progress
    with timer.stage("reference"):
        split, ids = manifest.gate["split"], _gate_ids(prepared.file, prepared.dataset)
        expected = prepared.reference.run(prepared.dataset, split, ids, progress)
        staged.add("reference.npz", "reference", expected.to_bytes(), optional=True)
    with timer.stage("parity"):
        staged.finish(manifest)
        return run_gate(open_bundle(staged.folder), expected, prepared.dataset, manifest.systems, progress)


def _finish(staged: StagedBundle, manifest: Manifest, report: ParityReport | None) -> Manifest:
    """Adds the report, writes the final manifest and checks the staged bundle as `verify` would."""
    if report is not None:
        manifest = dataclasses.replace(manifest, verdict=report.verdict, parity=report.to_json())
    staged.add("report.html", "report", report_html(manifest).encode())
    manifest = staged.finish(manifest)
    bundle = open_bundle(staged.folder)
    bundle.check()
    results, not_run = check_golden(bundle)
    if not_run or not all(r.bit_equal for r in results):
        raise ExportError("the staged bundle does not repeat its own golden outputs", where=str(staged.folder))
    return manifest


def _missed(report: ParityReport, result: BuildResult) -> GateFailed | GateInconclusive:
    error, word = (GateFailed, "failed") if report.verdict == FAIL else (GateInconclusive, "is inconclusive")
    broken = [limit.said() for limit in report.limits if limit.verdict != PASS]
    return error(
        f"the parity gate {word}:\n" + "\n".join(f"  {line}" for line in broken),
        where=str(result.output),
        remedy="the staging folder is kept for inspection and the previous bundle is untouched; keep sensitive "
        "layers float (keep_float of the target's quantize section), change the calibrator, or use more gate images",
        report=result.to_json(),
    )


class _StageTimer:
    def __init__(self, watch: Watcher) -> None:
        self.watch = watch
        self.seconds: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.watch.stage(name)
        start = time.monotonic()
        yield
        self.seconds.append((name, time.monotonic() - start))
