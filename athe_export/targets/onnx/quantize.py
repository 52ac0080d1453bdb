"""fp32 graph -> int8 graph: the linear layers. Attention products, LayerNorm, Softmax and GELU stay float, because
quantizing them too makes a ViT slower or worse (docs/decisions/0002-int8-what-and-why.md).

Token scorers stay float too: a flipped choice of tokens costs more than the layer saves.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import (
    CalibraterBase,
    CalibrationDataReader,
    TensorsData,
    create_calibrator,
    save_tensors_data,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from athe_export.errors import CalibrationError, EnvironmentFailure, ExportError, RecipeError
from athe_export.preprocessing import GraphInput
from athe_export.recipe import OnnxQuantizeSpec
from athe_export.targets.keep_float import kept_float
from athe_export.targets.onnx.graph import OnnxGraph, require_static, weighted_nodes
from athe_export.targets.onnx.pixels import RANGE, pixel_tensors, without_quantizing_pixels
from athe_export.targets.quiet import quiet
from athe_export.targets.ranges import BINS, Histogram, mse_range

OP_TYPES = ["Gemm"]
_CHUNK = 16  # images whose intermediate outputs are held at once while calibrating
_METHODS = {
    "min_max": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
    "mse": CalibrationMethod.Percentile,  # the library has none: its histograms are taken, and the range is found on them
}


def quantize(graph: OnnxGraph, spec: OnnxQuantizeSpec, images: Iterable[GraphInput]) -> OnnxGraph:
    """Quantizes one graph.

    Args:
        graph: simplified, fp32, layers named after torch modules.
        spec: scheme, calibrator (by name, not `auto`) and what stays float.
        images: calibration images of this branch, as the graph takes them; not read by the dynamic scheme.

    Raises:
        CalibrationError: no calibration images.
        ExportError: a layer that should be int8 is not, or the graph is no longer static.
        RecipeError: keep_float leaves no linear layer to quantize.
        ValueError: the calibrator is `auto`, which is for `calibrators.CalibrationStudy` to settle.
    """
    if spec.calibrator == "auto":
        raise ValueError("a calibrator is needed by name")
    keep = kept_float((node.name for node, _ in weighted_nodes(graph.model)), spec.keep_float)
    with _workspace() as folder, quiet():
        source, result = folder / "fp32.onnx", folder / "int8.onnx"
        onnx.save(graph.model, source)
        quant_pre_process(source, folder / "ready.onnx", skip_optimization=True, skip_symbolic_shape=True)
        if spec.scheme == "dynamic_wi8_afp32":
            quantize_dynamic(
                folder / "ready.onnx",
                result,
                op_types_to_quantize=["MatMul", "Gemm"],
                # the library splits a Gemm into MatMul and Add first, and excludes by the name it gives then
                nodes_to_exclude=[*(f"{layer}_MatMul" for layer in keep), *keep, *_products(graph)],
                per_channel=True,
                reduce_range=spec.reduce_range,
                weight_type=QuantType.QInt8,
            )
        else:
            _static(folder / "ready.onnx", result, keep, spec, images)
        model = onnx.load(result)
    without_quantizing_pixels(model)
    require_static(model, f"quantization of {graph.role}")
    quantized = OnnxGraph(graph.role, "int8", model, graph.mmacs)
    _require_coverage(graph, quantized, keep)
    return quantized


def _static(source: Path, result: Path, keep: list[str], spec: OnnxQuantizeSpec, images: Iterable[GraphInput]) -> None:
    ranges = source.with_name("ranges.json")
    save_tensors_data(_ranges(source, spec, images), ranges)
    quantize_static(
        source,
        result,
        None,
        calibration_cache_path=ranges,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OP_TYPES,
        nodes_to_exclude=keep,
        per_channel=True,
        reduce_range=spec.reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,  # which of them found the ranges makes no difference from here on
        extra_options={"OpTypesToExcludeOutputQuantization": OP_TYPES},
    )


def _ranges(source: Path, spec: OnnxQuantizeSpec, images: Iterable[GraphInput]) -> TensorsData:
    """Smallest and largest value that an int8 activation can have, by the recipe's calibrator.

    They are gathered chunk by chunk: the library's own loop would hold every intermediate output at once.
    """
    options = {"percentile": spec.percentile, "symmetric": False}
    calibrator: CalibraterBase = create_calibrator(
        source,
        OP_TYPES,
        augmented_model_path=str(source.with_name("augmented.onnx")),
        calibrate_method=_METHODS[spec.calibrator],
        extra_options=options | ({"num_bins": BINS} if spec.calibrator == "mse" else {}),
    )
    stream, fed = iter(images), 0
    try:
        while chunk := list(islice(stream, _CHUNK)):
            calibrator.collect_data(_Reader(chunk))
            fed += len(chunk)
    except ValueError as err:  # of numpy, which makes no histogram of them
        raise _endless(str(err)) from err
    if not fed:
        raise CalibrationError("static quantization has no calibration images", where="targets.onnx.quantize")
    if spec.calibrator == "mse":
        collected = calibrator.collector.get_histogram_dict()
        found = {name: mse_range(Histogram.of_bins(*entry[:4])) for name, entry in collected.items()}
    else:
        found = {name: data.range_value for name, data in calibrator.compute_data().items()}
    if endless := [name for name, ends in found.items() if not np.isfinite(ends).all()]:
        raise _endless(", ".join(endless[:8]))
    found |= dict.fromkeys(pixel_tensors(onnx.load(source)) & found.keys(), RANGE)
    return TensorsData(
        CalibrationMethod.MinMax, {n: (np.float32(low), np.float32(high)) for n, (low, high) in found.items()}
    )


def _endless(said: str) -> CalibrationError:
    return CalibrationError(
        f"values that are not finite on the calibration images: {said}",
        where="targets.onnx.quantize",
        remedy="the checkpoint overflows on some images; give another one with --checkpoint",
    )


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for files between steps, since ONNX Runtime quantizes from file to file.

    Raises:
        EnvironmentFailure: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="athe-quantize-") as name:
            yield Path(name)
    except OSError as err:
        raise EnvironmentFailure(
            f"the folder for temporary files cannot be written: {err.strerror or err}",
            where=tempfile.gettempdir(),
            remedy="free some space there, or set TMPDIR to a folder that has more",
        ) from err


class _Reader(CalibrationDataReader):
    def __init__(self, images: list[GraphInput]) -> None:
        self._images: Iterator[GraphInput] = iter(images)

    def get_next(self) -> dict[str, GraphInput] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image}


def _products(graph: OnnxGraph) -> list[str]:
    """Names of MatMuls between two activations (attention), which the dynamic scheme would quantize too."""
    weighted = {node.name for node, _ in weighted_nodes(graph.model)}
    return [n.name for n in graph.model.graph.node if n.op_type == "MatMul" and n.name not in weighted]


def _require_coverage(before: OnnxGraph, after: OnnxGraph, keep: list[str]) -> None:
    """Every layer that was asked to be int8 is, and none that was to stay float: nothing unnamed either way."""
    wanted = {node.name for node, _ in weighted_nodes(before.model) if node.op_type in OP_TYPES} - set(keep)
    if not wanted:  # a convolution may be left, which this target keeps float
        raise RecipeError(
            f"keep_float leaves nothing of branch {before.role} to quantize",
            where="targets.onnx.quantize.keep_float",
            remedy="shorten the list, or ask for precisions: [fp32]",
        )
    done = {name.removesuffix("_quant").removesuffix("_MatMul") for name in after.int8_ops}
    if missing := sorted(wanted - done):
        raise ExportError(
            f"layers stayed float that were asked to be int8: {', '.join(missing[:8])}",
            where=after.role,
            remedy="name them in targets.onnx.quantize.keep_float if that is acceptable",
        )
    if broken := sorted(done & set(keep)):
        raise ExportError(f"layers became int8 that were to stay float: {', '.join(broken[:8])}", where=after.role)
