"""A TFLite graph as a frozen value, and what can be read off its flatbuffer: shapes, MACs, int8 and float ops by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from athe_export.bundle.manifest import TensorInfo
from athe_export.errors import ExportError

_OP_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
_CONTROL_FLOW = frozenset({"IF", "WHILE", "CALL", "CALL_ONCE", "CUSTOM"})
_MATRIX_OPS = frozenset({"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL"})
_LAYOUT = frozenset(
    {"RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "CONCATENATION", "PAD", "SPLIT", "PACK", "UNPACK", "SQUEEZE"}
    | {"EXPAND_DIMS", "BROADCAST_TO", "EMBEDDING_LOOKUP", "GATHER", "QUANTIZE", "DEQUANTIZE", "CAST"}
)
_DTYPES = {schema.TensorType.FLOAT32: "float32", schema.TensorType.INT8: "int8", schema.TensorType.INT32: "int32"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; `stored` where its values are in the file (weights, biases, constants)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: bool


@dataclass(frozen=True)
class Op:
    """One operator in order of execution, e.g. FULLY_CONNECTED; named after its first output tensor."""

    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    transposes_first: bool = False  # BATCH_MATMUL's adj_x

    @property
    def name(self) -> str:
        return self.outputs[0].name

    @property
    def has_weight(self) -> bool:
        """Whether it is a linear or convolution layer: a matrix op with a stored second operand."""
        return self.kind in _MATRIX_OPS and self.inputs[1].stored

    @property
    def is_int8(self) -> bool:
        """Whether it multiplies, or for other ops computes, in int8; a layer with float inputs and int8 weights does."""
        return (self.inputs[1] if self.has_weight else self.outputs[0]).dtype == "int8"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        if self.kind not in _MATRIX_OPS:
            return 0
        weight, result = self.inputs[1].shape, math.prod(self.outputs[0].shape)
        if self.kind == "BATCH_MATMUL":
            return result * self.inputs[0].shape[-2 if self.transposes_first else -1]
        # weights are [out, in], [out, height, width, in] and, depthwise, [1, height, width, out]
        return result * math.prod(weight[1:3] if self.kind == "DEPTHWISE_CONV_2D" else weight[1:])


@dataclass(frozen=True)
class LitertGraph:
    """One role's graph at one precision (fp32 or int8): the .tflite file's content."""

    role: str
    precision: str
    content: bytes

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every operator, in order."""
        return tuple(_ops(unpack(self.content)))

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._signature("inputs")

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self._signature("outputs")

    @property
    def mmacs(self) -> float:
        """Million multiply-accumulates an image, from the graph's own shapes."""
        return round(sum(op.macs for op in self.ops) / 1e6, 3)

    @property
    def int8_ops(self) -> tuple[str, ...]:
        """Names of ops that compute in int8; data movement is not counted."""
        return tuple(op.name for op in self.ops if op.kind not in _LAYOUT and op.is_int8)

    @property
    def float_ops(self) -> tuple[str, ...]:
        """`op_type name` of every op that computes in floating point; data movement is not counted."""
        return tuple(f"{op.kind} {op.name}" for op in self.ops if op.kind not in _LAYOUT and not op.is_int8)

    def _signature(self, side: str) -> tuple[TensorInfo, ...]:
        model = unpack(self.content)
        found = getattr(model.signatureDefs[0], side)
        tensors = [_tensor(model.subgraphs[0].tensors[entry.tensorIndex], stored=False) for entry in found]
        return tuple(TensorInfo(_text(e.name), t.shape, t.dtype) for e, t in zip(found, tensors, strict=True))


def unpack(content: bytes) -> Any:
    """The flatbuffer as the schema's own mutable objects (ModelT), with all values in them."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.size:  # the quantizer puts values behind the flatbuffer, by their place in the file
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack(model: Any) -> bytes:
    """Inverse of `unpack`."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def require_static(graph: LitertGraph, stage: str) -> None:
    """Raises ExportError unless every shape is fixed, there is one subgraph and no control flow or custom op."""
    model = unpack(graph.content)
    loose = [
        _text(t.name) for s in model.subgraphs for t in s.tensors if t.shapeSignature is not None and -1 in t.shapeSignature
    ]
    branching = [f"{op.kind} {op.name}" for op in graph.ops if op.kind in _CONTROL_FLOW]
    several = [f"{len(model.subgraphs)} of them"] if len(model.subgraphs) != 1 else []
    for what, found in (
        ("shapes that are not fixed", loose),
        ("control flow or custom ops", branching),
        ("more than one subgraph", several),
    ):
        if found:
            raise ExportError(
                f"the graph has {what}: {', '.join(found[:8])}",
                where=stage,
                remedy="this is a fault of the export, not of the recipe; please report it with the recipe",
            )


def _ops(model: Any) -> Iterator[Op]:
    graph = model.subgraphs[0]
    made = {int(i) for op in graph.operators for i in op.outputs} | {int(i) for i in graph.inputs}
    tensors = [_tensor(t, stored=i not in made) for i, t in enumerate(graph.tensors)]
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        kind = _OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs = tuple(tensors[i] for i in op.inputs if i >= 0)
        transposes = kind == "BATCH_MATMUL" and bool(op.builtinOptions.adjX)
        yield Op(kind, inputs, tuple(tensors[i] for i in op.outputs), transposes)


def _tensor(tensor: Any, stored: bool) -> Tensor:
    shape = () if tensor.shape is None else tuple(int(d) for d in tensor.shape)
    return Tensor(_text(tensor.name), shape, _DTYPES.get(tensor.type, f"type {tensor.type}"), stored)


def _text(name: bytes | str | None) -> str:
    return name.decode() if isinstance(name, bytes) else name or ""
