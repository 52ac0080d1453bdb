"""Rewriting a TFLite graph where the converter leaves an op that XNNPACK is slow at or does not take.

Each function takes and returns a file's content and changes nothing that the graph computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from athe_export.errors import ExportError
from athe_export.targets.litert.graph import pack, unpack

PIXELS = "pixels"  # the tensor that holds them as float32
_OP = schema.BuiltinOperator
_MOVES = (_OP.RESHAPE, _OP.TRANSPOSE)  # data alone, whatever its type


def products_as_matmul(content: bytes) -> bytes:
    """A product with a computed second operand as BATCH_MATMUL.

    Of a product with a transposed operand the converter makes FULLY_CONNECTED, and XNNPACK takes that with stored weights
    alone.
    """
    model = unpack(content)
    graph = model.subgraphs[0]
    made = {int(i) for op in graph.operators for i in op.outputs}
    for op in graph.operators:
        if _kind(model, op) != _OP.FULLY_CONNECTED or int(op.inputs[1]) not in made:
            continue
        if op.builtinOptions.fusedActivationFunction or len([i for i in op.inputs if i >= 0]) != 2:
            raise ExportError(f"a product of two activations has a bias or an activation: {op.outputs}", where="conversion")
        op.opcodeIndex, op.inputs = _code(model, _OP.BATCH_MATMUL), op.inputs[:2]
        op.builtinOptionsType = schema.BuiltinOptions.BatchMatMulOptions
        op.builtinOptions = schema.BatchMatMulOptionsT()
        op.builtinOptions.adjY = True
    return pack(model)


def pixels_as_int8(content: bytes) -> bytes:
    """Input float32 pixels of 0 to 255 as int8, pixel - 128: scale 1, zero point -128, so that nothing is rounded.

    What only moves the pixels moves bytes; the first op that computes gets them as float32 again.
    """
    model = unpack(content)
    graph = model.subgraphs[0]
    front = int(graph.inputs[0])
    _as_pixels(graph.tensors[front])
    while len(readers := [op for op in graph.operators if front in op.inputs]) == 1 and _kind(model, readers[0]) in _MOVES:
        front = int(readers[0].outputs[0])
        _as_pixels(graph.tensors[front])
    widened = schema.TensorT()
    widened.shape, widened.type, widened.name = graph.tensors[front].shape, schema.TensorType.FLOAT32, PIXELS.encode()
    graph.tensors.append(widened)
    for op in readers:
        op.inputs = [len(graph.tensors) - 1 if int(i) == front else int(i) for i in op.inputs]
    widen = schema.OperatorT()
    widen.opcodeIndex, widen.inputs, widen.outputs = _code(model, _OP.DEQUANTIZE), [front], [len(graph.tensors) - 1]
    widen.builtinOptionsType, widen.builtinOptions = schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT()
    graph.operators.insert(graph.operators.index(readers[0]), widen)
    return pack(model)


def without_round_trips(content: bytes) -> bytes:
    """Without what is widened to float only to be quantized again by the same scale and zero point."""
    model = unpack(content)
    graph = model.subgraphs[0]
    widened = {int(op.outputs[0]): int(op.inputs[0]) for op in graph.operators if _kind(model, op) == _OP.DEQUANTIZE}
    replaced = {}
    for op in [op for op in graph.operators if _kind(model, op) == _OP.QUANTIZE]:
        source = widened.get(int(op.inputs[0]))
        if source is not None and _scaled(graph.tensors[source]) == _scaled(graph.tensors[int(op.outputs[0])]):
            replaced[int(op.outputs[0])] = source
            graph.operators.remove(op)
    for op in graph.operators:
        op.inputs = [replaced.get(int(i), int(i)) for i in op.inputs]
    read = {int(i) for op in graph.operators for i in op.inputs} | {int(i) for i in graph.outputs}
    unread = [op for op in graph.operators if _kind(model, op) == _OP.DEQUANTIZE and int(op.outputs[0]) not in read]
    for op in unread:
        graph.operators.remove(op)
    return pack(model) if replaced else content


def _as_pixels(tensor: Any) -> None:
    tensor.type, tensor.quantization = schema.TensorType.INT8, schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [1.0], [-128]


def _scaled(tensor: Any) -> tuple[int, list[float], list[int]]:
    of = tensor.quantization
    return int(tensor.type), np.asarray(of.scale).tolist(), np.asarray(of.zeroPoint).tolist()


def _kind(model: Any, op: Any) -> int:
    return _builtin(model.operatorCodes[op.opcodeIndex])


def _builtin(code: Any) -> int:
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _code(model: Any, kind: int) -> int:
    """Index of an op's entry in the model's table of codes, appended where it has none."""
    for index, code in enumerate(model.operatorCodes):
        if _builtin(code) == kind:
            return index
    added = schema.OperatorCodeT()
    added.builtinCode, added.deprecatedBuiltinCode = kind, min(kind, 127)
    added.version = 2 if kind == _OP.DEQUANTIZE else 1  # the version that takes int8
    model.operatorCodes.append(added)
    return len(model.operatorCodes) - 1
