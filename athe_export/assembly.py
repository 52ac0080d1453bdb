"""The parts of a bundle and its draft manifest, from what the stages made."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import (
    SCHEMA_VERSION,
    BranchEntry,
    GraphEntry,
    Manifest,
    PreprocessingEntry,
    PruneEntry,
    RouterEntry,
    TensorInfo,
)
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import StagedBundle
from athe_export.data.calibration import BranchShare
from athe_export.parity.limits import NOT_GATED
from athe_export.recipe import BranchSpec, RecipeFile
from athe_export.runtime.golden import golden_bytes, graph_outputs, key, margins, tolerances
from athe_export.runtime.litert_session import LitertSession
from athe_export.system import Prepared, Routing, System

GOLDEN_PER_BRANCH = 4
GOLDEN_CANDIDATES = 32  # of each branch's calibration images


class TargetGraph(Protocol):
    """What both targets' graphs offer."""

    @property
    def role(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def content(self) -> bytes: ...
    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...
    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...
    @property
    def mmacs(self) -> float: ...
    @property
    def int8_ops(self) -> tuple[str, ...]: ...
    @property
    def float_ops(self) -> tuple[str, ...]: ...


_SUFFIXES = {"onnx": "onnx", "litert": "tflite"}


def described(target: str, graph: TargetGraph) -> tuple[GraphEntry, bytes]:
    """A graph's entry, as it is if stored whole, and its content; of a TFLite graph, also what XNNPACK takes."""
    name = f"{target}/{graph.role}.{graph.precision}.{_SUFFIXES[target]}"
    content, int8, floats = graph.content, graph.int8_ops, graph.float_ops
    xnnpack = LitertSession(content).delegation()._asdict() if target == "litert" else None
    entry = GraphEntry(
        graph.role, target, graph.precision, name, len(content), hashlib.sha256(content).hexdigest(), graph.inputs,
        graph.outputs, graph.mmacs, len(int8), len(floats), floats, xnnpack,
    )  # fmt: skip
    return entry, content


def add_labels(staged: StagedBundle, prepared: Prepared) -> None:
    """labels.txt, one class a line."""
    staged.add("labels.txt", "labels", "".join(f"{n}\n" for n in prepared.dataset.class_names).encode())


def add_golden(staged: StagedBundle, prepared: Prepared, manifest: Manifest) -> Manifest:
    """golden.npz: the clearest calibration images of every branch, with torch's outputs and those of the staged graphs.

    Returns:
        The manifest with the golden tolerances.
    """
    bundle, images = open_bundle(staged.folder), prepared.images
    shares = [share.positions[:GOLDEN_CANDIDATES] for share in prepared.routing.shares]
    candidates = [images.sources[p] for share in shares for p in share]
    outputs: dict[str, npt.NDArray[np.float32]] = {}
    for entry in manifest.graphs:
        outputs[key(entry.target, entry.role, entry.precision)] = graph_outputs(bundle, entry, candidates)
    allowed = tolerances(outputs)
    margin, chosen, start = margins(manifest, outputs, allowed), [], 0
    for share in shares:
        clearest = np.argsort(-margin[start : start + len(share)], kind="stable")[:GOLDEN_PER_BRANCH]
        chosen += [start + int(i) for i in clearest]
        start += len(share)
    pixels = [candidates[i] for i in chosen]
    logits, scores = prepared.reference.outputs(pixels)
    kept = {name: output[chosen] for name, output in outputs.items()}
    kept |= {f"reference/{b.name}": x for b, x in zip(prepared.file.recipe.branches, logits, strict=True)}
    if prepared.routing.policy is not None:
        kept["reference/router"] = scores[:, None]
    staged.add("golden.npz", "golden", golden_bytes(pixels, kept))
    return manifest._replace(golden={"images": len(pixels), "tolerance": allowed})


def tool_versions() -> dict[str, str]:
    """Versions of everything that shapes a bundle."""
    names = (
        "athe-export", "torch", "onnx", "onnxruntime", "onnxsim", "litert-torch", "litert-converter", "torchao",
        "ai-edge-litert", "ai-edge-quantizer",
        "numpy", "pillow",
    )  # fmt: skip
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def draft_manifest(
    prepared: Prepared, graphs: tuple[GraphEntry, ...], calibrated: Mapping[str, Any] | None = None
) -> Manifest:
    """The manifest before the gate, verdict `not_gated`.

    Args:
        calibrated: how int8 ranges were found and what was measured of it (`CalibrationStudy.to_json`).
    """
    file, system, routing, images = prepared.file, prepared.system, prepared.routing, prepared.images
    recipe, preprocessing, dataset = file.recipe, images.preprocessing, prepared.dataset
    sizes = tuple(sorted({source.image_size for source in system.sources}))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name,
        recipe={"text": file.text, "sha256": file.sha256},
        checkpoint={"sha256": system.checkpoint_sha256, "trained": system.trained},
        dataset={"name": dataset.name, "sha256": dataset.digest},
        calibration={
            "split": images.found.split,
            "images": len(images.found.ids),
            "ids_sha256": images.found.ids_sha256,
            "pixels_sha256": images.found.pixels_sha256,
            **(calibrated or {}),
        },
        tools=tool_versions(),
        preprocessing=PreprocessingEntry(
            preprocessing.source_size,
            preprocessing.resize,
            preprocessing.mean,
            preprocessing.std,
            sizes,
            preprocessing.golden_sha256(sizes),
        ),
        router=_router(file, routing),
        branches=tuple(_branch(system, b, s) for b, s in zip(recipe.branches, routing.shares, strict=True)),
        graphs=graphs,
        golden={"images": 0, "tolerance": {"int8": 0.0, "fp32": 0.0}},  # until `add_golden`
        gate={"split": recipe.data.gate.split, "limits": vars(recipe.parity)},
        verdict=NOT_GATED,
        parity=None,
        notes=(*system.notes, *routing.notes),
        bench=vars(recipe.bench) if recipe.bench else None,
    )


def _router(file: RecipeFile, routing: Routing) -> RouterEntry | None:
    spec = file.recipe.router
    if spec is None or routing.policy is None:
        return None
    bounds = dict.fromkeys(("reference", *file.recipe.targets.names), routing.policy.bounds)
    return RouterEntry(spec.arch, spec.image_size, bounds)


def _branch(system: System, branch: BranchSpec, share: BranchShare) -> BranchEntry:
    heads = system.model.heads(branch)
    return BranchEntry(
        branch.name,
        branch.heads,
        tuple(PruneEntry(after, k) for after, k in branch.kept_tokens(system.model.recipe.model.patches)),
        branch.scorer,
        tuple(tuple(h) for h in heads) if heads else None,
        len(share.positions),
        share.topped_up,
    )
