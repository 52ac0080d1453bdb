"""Pixels into the first int8 layer as they are: uint8 of scale 1 and zero point 0 needs no quantizing."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

RANGE = (0.0, 255.0)


def pixel_tensors(model: ModelProto) -> frozenset[str]:
    """Tensors that are the graph's uint8 pixels as float32."""
    dtypes = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    pixels = {name for name, dtype in dtypes.items() if dtype == onnx.TensorProto.UINT8}
    widened = set()
    for node in model.graph.node:
        if node.op_type in ("Reshape", "Transpose") and node.input[0] in pixels:
            pixels.add(node.output[0])
        elif node.op_type == "Cast" and node.input[0] in pixels:
            widened.add(node.output[0])
    return frozenset(widened)


def without_quantizing_pixels(model: ModelProto) -> None:
    """Takes away, in place, what quantizes pixels that were widened to float32: static or dynamic, by scale 1 afterwards."""
    graph = model.graph
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    pixels = pixel_tensors(model)
    for node in [n for n in graph.node if n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and n.input[0] in pixels]:
        renamed = {node.output[0]: source[node.input[0]]}
        if node.op_type == "DynamicQuantizeLinear":
            for name, value in zip(node.output[1:], (np.float32(1), np.uint8(0)), strict=True):
                graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        graph.node.remove(node)
        for reader in graph.node:
            reader.input[:] = [renamed.get(name, name) for name in reader.input]
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for node in [n for n in graph.node if n.output[0] in pixels - read]:
        graph.node.remove(node)
