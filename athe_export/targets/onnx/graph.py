"""An ONNX graph as a frozen value, and what can be read off it: shapes, MACs, int8 and float ops by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, shape_inference

from athe_export.bundle.manifest import TensorInfo
from athe_export.errors import ExportError

DYNAMIC_OPS = frozenset({"Loop", "If", "Scan", "NonZero", "Unique", "NonMaxSuppression"})
_INT8_OPS = frozenset({"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"})
_INT8_FUSIBLE = frozenset({"Gemm", "MatMul", "Conv"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
_LAYOUT = frozenset(
    {"Reshape", "Transpose", "Concat", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Expand", "Identity", "Constant"}
    | {"Flatten", "Shape"}
)


@dataclass(frozen=True)
class OnnxGraph:
    """One role's graph at one precision (fp32 or int8); `mmacs` are million multiply-accumulates an image."""

    role: str
    precision: str
    model: ModelProto
    mmacs: float

    @property
    def content(self) -> bytes:
        """The .onnx file's content."""
        return self.model.SerializeToString(deterministic=True)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(_tensor_info(v) for v in self.model.graph.input)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return tuple(_tensor_info(v) for v in self.model.graph.output)

    @property
    def int8_ops(self) -> tuple[str, ...]:
        """Names of nodes that compute in int8: integer ops, and Gemm, MatMul, Conv between Q/DQ pairs."""
        return tuple(n.name for n in self.model.graph.node if self._is_int8(n))

    @property
    def float_ops(self) -> tuple[str, ...]:
        """`op_type name` of every node that computes in floating point; data movement and Q/DQ are not counted."""
        skipped = _QUANTIZERS | _LAYOUT
        nodes = [n for n in self.model.graph.node if n.op_type not in skipped and not self._is_int8(n)]
        return tuple(f"{n.op_type} {n.name}" for n in nodes)

    def _is_int8(self, node: NodeProto) -> bool:
        """As ONNX Runtime fuses it: operands from DequantizeLinear, and a Conv's output to QuantizeLinear."""
        if node.op_type in _INT8_OPS:
            return True
        if node.op_type not in _INT8_FUSIBLE:
            return False
        made_by = {name: n.op_type for n in self.model.graph.node for name in n.output}
        read_by = {name: n.op_type for n in self.model.graph.node for name in n.input}
        quantized = all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
        return quantized and (node.op_type != "Conv" or read_by.get(node.output[0]) == "QuantizeLinear")


def require_static(model: ModelProto, stage: str) -> None:
    """Postcondition of every stage: valid, fixed shapes everywhere, no control flow, every node named.

    Raises:
        ExportError: names what broke it.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as err:
        raise ExportError(f"the graph is not valid ONNX: {str(err).splitlines()[0]}", where=stage) from None
    dynamic = sorted({f"{n.op_type} {n.name}" for n in model.graph.node if n.op_type in DYNAMIC_OPS})
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    values = [*model.graph.input, *model.graph.output, *inferred.graph.value_info]
    loose = [v.name for v in values if any(not d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)]
    nameless = [n.op_type for n in model.graph.node if not n.name]
    for what, found in (("data-dependent ops", dynamic), ("shapes that are not fixed", loose), ("nameless nodes", nameless)):
        if found:
            raise ExportError(
                f"the graph has {what}: {', '.join(found[:8])}",
                where=stage,
                remedy="this is a fault of the export, not of the recipe; please report it with the recipe",
            )


def count_mmacs(model: ModelProto) -> float:
    """Multiply-accumulates of Conv, Gemm and MatMul, in millions, from the graph's own shapes."""
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {i.name: tuple(i.dims) for i in inferred.graph.initializer}
    for value in [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]:
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return round(sum(_macs(n, shapes) for n in inferred.graph.node) / 1e6, 3)


def weighted_nodes(model: ModelProto) -> Iterator[tuple[NodeProto, str]]:
    """Every Conv, Gemm and MatMul with a stored weight, and the name of that weight."""
    stored = {i.name for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _INT8_FUSIBLE and node.input[1] in stored:
            yield node, node.input[1]


def _macs(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in _INT8_FUSIBLE:
        return 0
    out, weight = shapes[node.output[0]], shapes[node.input[1]]
    if node.op_type == "Conv":
        return int(np.prod(out)) * int(np.prod(weight[1:]))
    first = shapes[node.input[0]]
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return int(np.prod(out)) * (first[0] if transposed else first[-1])


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    dtype = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8"}.get(tensor.elem_type, str(tensor.elem_type))
    return TensorInfo(value.name, tuple(d.dim_value for d in tensor.shape.dim), dtype)
