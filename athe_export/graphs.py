"""A build's graphs, target by target: every role exported and held against torch, then quantized as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

from athe_export.assembly import TargetGraph
from athe_export.branches import BranchGraphSource
from athe_export.build_gate import ExportedGraphs
from athe_export.calibrators import AUTO, CalibrationStudy, Job
from athe_export.deployed import CENTRED, PLAIN, UNFOLDED, deployed
from athe_export.layer_precision import PrecisionStudy
from athe_export.preprocessing import Pixels
from athe_export.recipe import LitertTarget, OnnxTarget
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.stages import StageTimer
from athe_export.system import Prepared
from athe_export.targets.equality import require_alike, require_equal
from athe_export.targets.keep_float import kept_float
from athe_export.targets.litert.export import export as litert_export
from athe_export.targets.litert.quantize import quantize as litert_quantize
from athe_export.targets.onnx.export import export as onnx_export
from athe_export.targets.onnx.quantize import quantize as onnx_quantize
from athe_export.targets.onnx.simplify import simplify

CHECK_IMAGES = 4  # calibration images on which every fp32 graph is held against torch
_QUANTIZE: dict[str, Callable[..., TargetGraph]] = {"onnx": onnx_quantize, "litert": litert_quantize}


def target_graphs(
    prepared: Prepared,
    target: str,
    exported: ExportedGraphs,
    study: CalibrationStudy,
    layers: PrecisionStudy,
    timer: StageTimer,
) -> Iterator[TargetGraph]:
    """The graphs of a target that the bundle holds: every role, every precision that the recipe asks for.

    A role of which nothing becomes int8 is there once, in fp32, whatever the precisions.
    """
    spec = getattr(prepared.file.recipe.targets, target)
    fp32: dict[str, TargetGraph] = {}
    for source in prepared.system.sources:
        with timer.stage(f"{target}: export {source.role}"):
            fp32[source.role] = export_graph(prepared, source, spec)
            exported.add(target, fp32[source.role])
    jobs = {
        s.role: quantize_job(target, prepared, s, fp32[s.role]) for s in prepared.system.sources if is_quantized(s, spec)
    }
    compared = jobs and spec.quantize.calibrator == AUTO
    with timer.stage(f"{target}: calibrator") if compared else nullcontext():
        settled = study.settled(tuple(jobs.values()), spec.quantize)
    if jobs:
        settled = layers.settled(tuple(jobs.values()), settled, timer)
    for role, graph in fp32.items():
        if "fp32" in spec.precisions or role not in jobs:
            yield graph
        if role in jobs:
            with timer.stage(f"{target}: quantize {role}"):
                quantized = jobs[role].quantize(settled, jobs[role].images())
                study.measure_stability(jobs[role], settled, quantized)
            yield quantized


def calibration_pixels(prepared: Prepared, source: BranchGraphSource) -> Iterator[Pixels]:
    """A branch is calibrated on images that are routed to it, the router on all."""
    names = [b.name for b in prepared.file.recipe.branches]
    share = None if source.role == "router" else prepared.routing.shares[names.index(source.role)]
    return prepared.images.pixels(share, source.image_size)


def export_graph(prepared: Prepared, source: BranchGraphSource, spec: OnnxTarget | LitertTarget) -> TargetGraph:
    """A role's fp32 graph.

    Raises:
        ExportError: it cannot be exported, or is not what torch computes.
    """
    images, norms = prepared.images, PLAIN
    if isinstance(spec, LitertTarget):
        norms = UNFOLDED if prepared.system.equalised else CENTRED
    made = deployed(source, images.preprocessing, norms)
    checked = tuple(images.pixels(None, source.image_size, CHECK_IMAGES))
    require_alike(made, source, checked, tuple(images.tensors(None, source.image_size, CHECK_IMAGES)))
    if isinstance(spec, LitertTarget):
        return litert_export(made, checked)
    graph = simplify(onnx_export(made, spec.opset, checked))
    require_equal(OnnxSession(graph.content), made, checked, "simplification")
    return graph


def is_quantized(source: BranchGraphSource, spec: OnnxTarget | LitertTarget) -> bool:
    """Whether a role has an int8 graph; ONNX's router has none, since ONNX Runtime's int8 does not pay there."""
    if "int8" not in spec.precisions or (source.role == "router" and isinstance(spec, OnnxTarget)):
        return False
    return len(kept_float(source.layers, spec.quantize.keep_float)) < len(source.layers)


def quantize_job(target: str, prepared: Prepared, source: BranchGraphSource, graph: Any) -> Job:
    """How a role of a target becomes int8 in this build; `graph` is its fp32 graph."""
    quantize, images = partial(_QUANTIZE[target], graph), partial(calibration_pixels, prepared, source)
    return Job(target, source.role, source.image_size, graph, quantize, images)
