"""What every peer is given: one checkpoint's graphs as torch modules, ONNX and TFLite, images and calibration images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from athe_export.branches import BranchGraphSource, build_branch
from athe_export.data.source import Dataset
from athe_export.graphs import CHECK_IMAGES
from athe_export.recipe import BranchSpec, OnnxTarget
from athe_export.stages import StageTimer
from athe_export.system import Prepared
from athe_export.targets.litert.export import export as litert_export
from athe_export.targets.onnx.export import export as onnx_export
from athe_export.targets.onnx.simplify import simplify
from peers.ours import bundle_of
from peers.peer import DENSE, ROUTER, Job


def dense_and_branches(prepared: Prepared) -> list[BranchGraphSource]:
    """The whole backbone first, then the recipe's branches; one that is the backbone is there once, as dense."""
    recipe = prepared.file.recipe
    branches = [s for s in prepared.system.sources if s.role not in (ROUTER, DENSE)]
    whole = {b.name for b in recipe.branches if not b.prune and b.heads == recipe.model.heads}
    dense = build_branch(prepared.system.model, BranchSpec(DENSE, recipe.model.heads))
    return [dense, *(s for s in branches if s.role not in whole)]


def write_job(
    prepared: Prepared, folder: Path, bundle: Path | None, images: int, calibration: int, timer: StageTimer
) -> Job:
    """Writes the folder that workers read.

    Args:
        bundle: ours, where the recipe's name does not say where it is.
        images: of the gate's split, drawn at random, for times and agreement.
        calibration: images of a graph at most.

    Raises:
        BundleIntegrityError: our bundle is there and not whole.
        ExportError: a graph cannot be exported, or is not what torch computes.
    """
    file, recipe = prepared.file, prepared.file.recipe
    sources = dense_and_branches(prepared)
    for source in sources:
        with timer.stage(f"export {source.role}"):
            _write_graph(prepared, source, folder)
            np.save(folder / f"{source.role}.calibration.npy", _calibration(prepared, source.role)[:calibration])
    _write_images(prepared.dataset, recipe.data.gate.split, prepared, folder, images)
    own, why = bundle_of(bundle or Path("artifacts/bundles") / recipe.name, file.sha256, prepared.system.checkpoint_sha256)
    said = {
        "graphs": [source.role for source in sources],
        "image_size": recipe.model.image_size,
        "preprocessing": prepared.images.preprocessing._asdict(),
        "routed": recipe.router is not None,
        "bundle": None if own is None else str(own.path.resolve()),
        "no_bundle": why,
    }
    (folder / "job.json").write_text(json.dumps(said))
    return Job(folder)


def _write_graph(prepared: Prepared, source: BranchGraphSource, folder: Path) -> None:
    targets, job = prepared.file.recipe.targets, Job(folder)
    torch.save(source.module, job.file(source.role, "pt"))
    checked = tuple(prepared.images.tensors(None, source.image_size, CHECK_IMAGES))
    onnx = simplify(onnx_export(source, (targets.onnx or OnnxTarget()).opset, checked))
    job.file(source.role, "onnx").write_bytes(onnx.content)
    job.file(source.role, "tflite").write_bytes(litert_export(source, checked).content)


def _calibration(prepared: Prepared, graph: str) -> np.ndarray:
    """Calibration images at source size: all, or those that the router sends a branch."""
    names = [b.name for b in prepared.file.recipe.branches]
    sources = prepared.images.sources
    positions = prepared.routing.shares[names.index(graph)].positions if graph in names else range(len(sources))
    return np.stack([sources[p] for p in positions])


def _write_images(dataset: Dataset, split: str, prepared: Prepared, folder: Path, count: int) -> None:
    drawn = np.sort(np.random.RandomState(0).permutation(dataset.size(split))[:count])
    preprocessing = prepared.images.preprocessing
    np.save(folder / "images.npy", np.stack([preprocessing.source(dataset.image(split, int(i))) for i in drawn]))
    np.save(folder / "labels.npy", dataset.labels(split)[drawn])
