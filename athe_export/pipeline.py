"""A build, from the recipe to the promoted bundle: `run_build` reads like the README."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from athe_export.assembly import add_graph, add_labels, draft_manifest, golden_sources
from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import StagedBundle, staged_bundle
from athe_export.data.calibration import check_calibration_set, read_calibration_set
from athe_export.data.source import Dataset, Progress, open_dataset, require_split
from athe_export.errors import ExportError, GateFailed, GateInconclusive
from athe_export.parity.answers import target_answers
from athe_export.parity.gate import FAIL, INCONCLUSIVE, NOT_GATED, GateLimits, ParityReport, judge
from athe_export.parity.reference import Reference
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import RecipeFile
from athe_export.reference import TorchReference
from athe_export.report.html import report_html
from athe_export.runtime.golden import check_golden, golden_bytes, golden_outputs
from athe_export.runtime.predictor import RoutedGraphs
from athe_export.system import CalibrationImages, Routing, System, fit_routing, load_system
from athe_export.targets.onnx.export import export, require_equal
from athe_export.targets.onnx.quantize import quantize
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
        AtheExportError: anything else that a user can mend; nothing is left behind.
    """
    timer = _StageTimer(watch)
    with staged_bundle(output) as staged:
        with timer.stage("data"):
            dataset = _dataset(file, data_root, watch.progress)
            images = _calibration(file, dataset)
        with timer.stage("checkpoint"):
            path = str(checkpoint.resolve()) if checkpoint else file.recipe.checkpoint.path
            system = load_system(file, images, file.recipe.checkpoint.random_seed, path)
            reference = TorchReference(system.sources, images.preprocessing)
        with timer.stage("routing"):
            routing = fit_routing(file, system, reference, images, dataset, watch.progress)
        graphs = _onnx_graphs(file, system, routing, images, staged, timer)
        with timer.stage("golden"):
            manifest = _write_contents(file, staged, system, routing, images, dataset, graphs)
        if system.trained:
            with timer.stage("reference"):
                expected = _reference(file, staged, reference, dataset, watch.progress)
            with timer.stage("parity"):
                manifest = _gate(manifest, staged, expected, routing, dataset, watch.progress)
        with timer.stage("verify"):
            manifest = _finish(staged, manifest)
        _promote(staged, BuildResult(staged.folder, manifest, tuple(timer.seconds)))
    return BuildResult(output, manifest, tuple(timer.seconds))


def _dataset(file: RecipeFile, data_root: Path | None, progress: Progress) -> Dataset:
    data = file.recipe.data
    dataset = open_dataset(data.dataset, data_root, file.resolve(data.path) if data.path else None, progress)
    require_split(dataset, data.gate.split, "data.gate.split")
    return dataset


def _gate_ids(file: RecipeFile, dataset: Dataset) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    gate = file.recipe.data.gate
    size = dataset.size(gate.split)
    return np.arange(size if gate.limit is None else min(gate.limit, size), dtype=np.int64)


def _calibration(file: RecipeFile, dataset: Dataset) -> CalibrationImages:
    data = file.recipe.data
    path = file.resolve(data.calibration)
    found = read_calibration_set(path)
    check_calibration_set(found, path, dataset, data.gate.split, len(_gate_ids(file, dataset)))
    preprocessing = Preprocessing(**vars(data.preprocessing))
    sources = tuple(preprocessing.source(dataset.image(found.split, i)) for i in found.ids)
    return CalibrationImages(found, sources, preprocessing)


def _onnx_graphs(
    file: RecipeFile, system: System, routing: Routing, images: CalibrationImages, staged: StagedBundle, timer: _StageTimer
) -> tuple[GraphEntry, ...]:
    """Each role through export, simplify and quantize; the router stays float, where ONNX Runtime's int8 does not pay."""
    target = file.recipe.targets.onnx
    shares = dict(zip((b.name for b in file.recipe.branches), routing.shares, strict=True))
    entries = []
    for source in system.sources:
        checked = tuple(images.tensors(None, source.image_size))[:CHECK_IMAGES]
        with timer.stage(f"export {source.role}"):
            graph = simplify(export(source, target.opset, checked))
            require_equal(graph, source, checked, "simplification")
        if source.role != "router":
            with timer.stage(f"quantize {source.role}"):
                calibration = images.tensors(shares[source.role], source.image_size)
                graph = quantize(graph, target.quantize, calibration)
        entries.append(add_graph(staged, graph))
    return tuple(entries)


def _write_contents(
    file: RecipeFile,
    staged: StagedBundle,
    system: System,
    routing: Routing,
    images: CalibrationImages,
    dataset: Dataset,
    graphs: tuple[GraphEntry, ...],
) -> Manifest:
    """Labels and golden images; returns the manifest as far as it is known before the gate."""
    add_labels(staged, dataset, file.recipe.model.classes)
    manifest = draft_manifest(file, system, routing, images, dataset, graphs, tool_versions())
    staged.finish(manifest)
    chosen = golden_sources(images, routing)
    staged_outputs = golden_outputs(open_bundle(staged.folder), "onnx", chosen)
    logits, scores = TorchReference(system.sources, images.preprocessing).outputs(chosen)
    expected = dict(zip((f"reference/{b.name}" for b in file.recipe.branches), logits, strict=True))
    if routing.policy is not None:
        expected["reference/router"] = scores[:, None]
    staged.add("golden.npz", "golden", golden_bytes(chosen, staged_outputs | expected))
    return manifest


def _reference(
    file: RecipeFile, staged: StagedBundle, reference: TorchReference, dataset: Dataset, progress: Progress
) -> Reference:
    expected = reference.run(dataset, file.recipe.data.gate.split, _gate_ids(file, dataset), progress)
    staged.add("reference.npz", "reference", expected.to_bytes(), optional=True)
    return expected


def _gate(
    manifest: Manifest,
    staged: StagedBundle,
    expected: Reference,
    routing: Routing,
    dataset: Dataset,
    progress: Progress,
) -> Manifest:
    """Runs the staged bundle through the device's own runtime."""
    staged.finish(manifest)
    bundle = open_bundle(staged.folder)
    targets = dict.fromkeys(g.target for g in manifest.graphs)
    answers = {
        target: target_answers(
            RoutedGraphs(bundle, target, "int8"),
            Preprocessing(*(getattr(manifest.preprocessing, f) for f in ("source_size", "resize", "mean", "std"))),
            dataset,
            manifest.gate["split"],
            expected.ids,
            progress,
            f"{target} int8 on the gate's images",
        )
        for target in targets
    }
    names = tuple(b.name for b in manifest.branches)
    report = judge(expected, routing.policy, answers, names, GateLimits(**manifest.gate["limits"]))
    return dataclasses.replace(manifest, verdict=report.verdict, parity=report.to_json())


def _finish(staged: StagedBundle, manifest: Manifest) -> Manifest:
    """Adds the report, writes the final manifest and checks the staged bundle as `verify` would."""
    staged.add("report.html", "report", report_html(manifest).encode())
    manifest = staged.finish(manifest)
    bundle = open_bundle(staged.folder)
    bundle.check()
    results, not_run = check_golden(bundle)
    if not_run or not all(r.bit_equal for r in results):
        raise ExportError("the staged bundle does not repeat its own golden outputs", where=str(staged.folder))
    return manifest


def _promote(staged: StagedBundle, result: BuildResult) -> None:
    manifest = result.manifest
    if manifest.verdict in (FAIL, INCONCLUSIVE):
        staged.keep()
        assert manifest.parity is not None
        broken = [x for x in _limit_lines(manifest) if "holds" not in x]
        error, word = (GateFailed, "failed") if manifest.verdict == FAIL else (GateInconclusive, "is inconclusive")
        raise error(
            f"the parity gate {word}:\n" + "\n".join(f"  {line}" for line in broken),
            where=str(staged.folder),
            remedy="the staging folder is kept for inspection and the previous bundle is untouched; keep sensitive "
            "layers float (targets.onnx.quantize.keep_float), change the calibrator, or use more gate images",
            report=result.to_json(),
        )
    staged.promote()


def _limit_lines(manifest: Manifest) -> list[str]:
    from athe_export.parity.gate import LimitResult

    assert manifest.parity is not None
    return [LimitResult(**limit).said() for limit in manifest.parity["limits"]]


def tool_versions() -> dict[str, str]:
    """Versions of everything that shapes a bundle."""
    import platform

    names = ("athe-export", "torch", "onnx", "onnxruntime", "onnxsim", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


class _StageTimer:
    def __init__(self, watch: Watcher) -> None:
        self._watch = watch
        self.seconds: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._watch.stage(name)
        start = time.monotonic()
        yield
        self.seconds.append((name, time.monotonic() - start))


__all__ = ["NOT_GATED", "BuildResult", "ParityReport", "Watcher", "run_build"]
