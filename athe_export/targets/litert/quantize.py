"""fp32 TFLite graph -> int8: a branch's fully connected layers and convolutions, a router's every op.

Quantizing every op makes a ViT slower than fp32 (docs/decisions/0002-int8-what-and-why.md); a MobileNet gains by it.
Token scorers stay float: a flipped choice of tokens costs more than the layer saves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from ai_edge_quantizer import calibrator, qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.utils import histogram_utils, qsv_utils, tfl_interpreter_utils

from athe_export.errors import CalibrationError, ExportError
from athe_export.preprocessing import GraphInput
from athe_export.recipe import LitertQuantizeSpec
from athe_export.runtime.litert_session import LitertSession, pixels_as_int8
from athe_export.targets.keep_float import kept_float, matching
from athe_export.targets.litert.graph import LitertGraph, Op, require_static
from athe_export.targets.litert.rewrite import PIXELS, without_round_trips
from athe_export.targets.quiet import quiet
from athe_export.targets.ranges import BINS, Histogram, mse_range, percentile_range

_LAYERS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
_CHUNK = 16  # images that the calibrator is handed at once, since it goes over them twice
_BITS = 8


def quantize(graph: LitertGraph, spec: LitertQuantizeSpec, images: Iterable[GraphInput]) -> LitertGraph:
    """Quantizes one graph.

    Args:
        graph: fp32, layers named after torch modules.
        spec: scheme of the branches, calibrator (by name, not `auto`) and what stays float.
        images: calibration images of this role, as the graph's session takes them; a branch's are not read by the dynamic
            scheme.

    Raises:
        CalibrationError: no calibration images.
        ExportError: a layer that should be int8 is not or the other way round, the graph is no longer static, or
            XNNPACK takes it in more partitions than the fp32 graph.
        ValueError: the calibrator is `auto`, which is for `calibrators.CalibrationStudy` to settle.
    """
    if spec.calibrator == "auto":
        raise ValueError("a calibrator is needed by name")
    keep = kept_float((op.name for op in graph.ops if op.has_weight), spec.keep_float)
    job = quantizer.Quantizer(graph.content)
    _configure(job, graph, spec)
    for end in ("INPUT", "OUTPUT"):  # whoever runs the graph deals in float32
        job.update_quantization_recipe(".*", _kind(end), algorithm_key=AlgorithmName.NO_QUANTIZE)
    for layer in keep:
        for kind in _LAYERS:
            job.update_quantization_recipe(_of(layer), _kind(kind), algorithm_key=AlgorithmName.NO_QUANTIZE)
    try:
        with quiet():
            ranges = _ranges(graph, job, spec, images) if job.need_calibration else None
            result = job.quantize(ranges, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError) as err:
        raise ExportError(
            f"ai-edge-quantizer fails: {(str(err).strip().splitlines() or [type(err).__name__])[0]}",
            where=f"quantization of {graph.role}",
            remedy="keep the layers that it names float: targets.litert.quantize.keep_float",
        ) from err
    quantized = LitertGraph(graph.role, "int8", without_round_trips(bytes(result.quantized_model)))
    require_static(quantized, f"quantization of {graph.role}")
    _require_coverage(graph, quantized, keep)
    _require_dynamic(quantized, spec)
    require_delegation(graph, quantized)
    return quantized


def require_delegation(before: LitertGraph, after: LitertGraph) -> None:
    """Raises ExportError, naming the op, where XNNPACK takes `after` in more partitions than `before`."""
    fp32, int8 = (LitertSession(g.content).delegation() for g in (before, after))
    if int8.partitions <= fp32.partitions:
        return
    fresh = [op for op in int8.outside if op not in fp32.outside] or list(int8.outside)
    blamed = _layer_behind(after, {op.split(" ", 1)[1] for op in fresh})
    remedy = "use another targets.litert.quantize.scheme, or precisions: [fp32]"
    if blamed is not None:
        remedy = f'keep it float: targets.litert.quantize.keep_float: ["{blamed}"]'
    raise ExportError(
        f"XNNPACK takes the int8 graph in {int8.partitions} partitions and the fp32 graph in {fp32.partitions}; "
        f"what it leaves out: {', '.join(fresh[:8])}",
        where=f"quantization of {after.role}",
        remedy=remedy,
    )


def _layer_behind(graph: LitertGraph, names: set[str]) -> str | None:
    """The int8 layer that the first op of these names is, or gets its input from."""
    maker = {tensor.name: op for op in graph.ops for tensor in op.outputs}
    todo: list[Op] = [op for op in graph.ops if op.name in names][:1]
    seen: set[str] = set()
    while todo:
        op = todo.pop(0)
        if op.has_weight and op.is_int8:
            return op.name
        seen.add(op.name)
        todo += [maker[t.name] for t in op.inputs if t.name in maker and maker[t.name].name not in seen]
    return None


def _kind(name: str) -> Any:
    return qtyping.TFLOperationName(name)


def _configure(job: quantizer.Quantizer, graph: LitertGraph, spec: LitertQuantizeSpec) -> None:
    """A router is static in every op whatever the scheme: XNNPACK has no depthwise convolution that takes float inputs and
    int8 weights."""
    if graph.role == "router":
        job.add_static_config(".*", _kind("*"), _BITS, _BITS)
        return
    add = job.add_dynamic_config if spec.scheme == "dynamic_wi8_afp32" else job.add_static_config
    bits = (_BITS,) if spec.scheme == "dynamic_wi8_afp32" else (_BITS, _BITS)
    for kind in _LAYERS:
        add(".*", _kind(kind), *bits)
    for layer in matching((op.name for op in graph.ops if op.has_weight), spec.dynamic):
        for kind in _LAYERS:
            job.add_dynamic_config(_of(layer), _kind(kind), _BITS)


def _of(layer: str) -> str:
    """The pattern of a layer's op: the library ends each of an op's output names with a semicolon."""
    return f"^{re.escape(layer)};$"


def _ranges(
    graph: LitertGraph, job: quantizer.Quantizer, spec: LitertQuantizeSpec, images: Iterable[GraphInput]
) -> dict[str, Any]:
    """Smallest and largest value that every int8 activation can have, by the recipe's calibrator.

    The library's own, a moving average, forgets the ends of a range. It knows no other that looks at how values lie
    between the ends: for those a histogram of every activation is taken. It knows the ends too, so that from the first
    images on the library need not go over them as well: what it is asked for then is which tensors have a range.
    """
    update = qsv_utils.moving_average_update if spec.calibrator == "moving_average" else qsv_utils.min_max_update
    found = calibrator.Calibrator(graph.content, num_threads=1, qsv_update_func=update)
    seen = _Histograms(graph.content) if spec.calibrator in ("percentile", "mse") else None
    (signature,) = found.get_signature_list()
    stream, fed = map(pixels_as_int8, images), 0
    while chunk := list(islice(stream, _CHUNK)):
        if seen is None or not fed:
            found.calibrate({signature: [{"image": image} for image in chunk]}, job._recipe_manager)
            ranges: dict[str, Any] = found.get_model_qsvs()
            _require_finite(ranges, graph.role)
        if seen is not None:
            seen.add(chunk, ranges, graph.role)
        fed += len(chunk)
    if not fed:
        raise CalibrationError("static quantization has no calibration images", where="targets.litert.quantize")
    settled = ranges if seen is None else seen.ranges(ranges, spec)
    if PIXELS in settled:  # whatever was seen of them, so that they are quantized as they come
        ends = settled[PIXELS]
        settled[PIXELS] = ends | {"min": np.full_like(ends["min"], 0), "max": np.full_like(ends["max"], 255)}
    return settled


def _require_finite(ranges: dict[str, Any], role: str) -> None:
    """Raises CalibrationError on a range without an end: the runtime would crash on its scale."""
    if endless := [name for name, ends in ranges.items() if not all(np.isfinite(end).all() for end in ends.values())]:
        raise CalibrationError(
            f"values that are not finite on the calibration images: {', '.join(endless[:8])}",
            where=role,
            remedy="the checkpoint overflows on some images; give another one with --checkpoint",
        )


class _Histograms:
    """How the values of a graph's activations lie, gathered by the library's histogram in an interpreter of our own."""

    def __init__(self, content: bytes) -> None:
        self._interpreter = tfl_interpreter_utils.create_tfl_interpreter(content, num_threads=1)
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._indices = {tensor["name"]: tensor["index"] for tensor in self._interpreter.get_tensor_details()}
        self._seen: dict[str, Any] = {}

    def add(self, images: list[Any], names: Iterable[str], role: str) -> None:
        """Counts the values of the tensors `names` on images as the graph takes them.

        Raises:
            CalibrationError: a value is not finite.
        """
        with ThreadPoolExecutor(1) as counting:  # beside the next image, which is computed without Python's lock
            counted = counting.submit(self._count, {})
            for image in images:
                self._interpreter.set_tensor(self._input, image)
                self._interpreter.invoke()
                values = {name: self._interpreter.get_tensor(self._indices[name]) for name in names}
                _require_finite({name: {"values": found} for name, found in values.items()}, role)
                counted.result()
                counted = counting.submit(self._count, values)
            counted.result()

    def _count(self, values: dict[str, Any]) -> None:
        for name, found in values.items():
            self._seen.setdefault(name, histogram_utils.DynamicHistogram(BINS)).add(found)

    def ranges(self, measured: dict[str, Any], spec: LitertQuantizeSpec) -> dict[str, Any]:
        """The library's ranges with both ends replaced, in the shape that they have."""
        found = {}
        for name, ends in measured.items():
            of_tensor = self._seen[name].to_dict()["channels"][0]
            low, high = float(of_tensor["min"][0]), float(of_tensor["max"][0])
            values = Histogram.of_bins(of_tensor["hist_counts"], of_tensor["bin_edges"], low, high)
            low, high = mse_range(values) if spec.calibrator == "mse" else percentile_range(values, spec.percentile)
            found[name] = {"min": np.full_like(ends["min"], low), "max": np.full_like(ends["max"], high)}
        return found


def _require_dynamic(after: LitertGraph, spec: LitertQuantizeSpec) -> None:
    """An int8 layer of a branch gives float where it was asked to be dynamic, whatever its neighbours are."""
    if after.role == "router":
        return
    given = {op.name: op.outputs[0].dtype for op in after.ops if op.has_weight and op.is_int8}
    if static := [name for name in matching(given, spec.dynamic) if given[name] != "float32"]:
        raise ExportError(f"layers became static that were asked to be dynamic: {', '.join(static[:8])}", where=after.role)


def _require_coverage(before: LitertGraph, after: LitertGraph, keep: list[str]) -> None:
    """Every layer that was asked to be int8 is, and none that was to stay float: nothing unnamed either way."""
    wanted = {op.name for op in before.ops if op.has_weight} - set(keep)
    done = {op.name for op in after.ops if op.has_weight and op.is_int8}
    if missing := sorted(wanted - done):
        raise ExportError(
            f"layers stayed float that were asked to be int8: {', '.join(missing[:8])}",
            where=after.role,
            remedy="name them in targets.litert.quantize.keep_float if that is acceptable",
        )
    if broken := sorted(done & set(keep)):
        raise ExportError(f"layers became int8 that were to stay float: {', '.join(broken[:8])}", where=after.role)
