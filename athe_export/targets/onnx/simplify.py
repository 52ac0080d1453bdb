"""onnxsim over an fp32 graph; then every layer's node takes its torch module's name, which the recipe's globs use."""

from __future__ import annotations

import onnx
import onnxsim

from athe_export.errors import ExportError
from athe_export.targets.onnx.graph import OnnxGraph, count_mmacs, require_static, weighted_nodes


def simplify(graph: OnnxGraph) -> OnnxGraph:
    """The same function in fewer nodes; the caller holds it against torch again (`export.require_equal`).

    Raises:
        ExportError: onnxsim fails, interface or MACs change, or the graph is no longer static.
    """
    before = (graph.inputs, graph.outputs)
    try:
        model, _ = onnxsim.simplify(graph.model, check_n=0)  # its own check uses noise; ours, real images
    except Exception as err:  # onnxsim raises plain runtime errors of many kinds
        raise ExportError(f"onnxsim failed: {str(err).splitlines()[0]}", where=graph.role) from err
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for node, weight in weighted_nodes(named):
        node.name = weight.removesuffix(".weight")
    require_static(named, f"simplification of {graph.role}")
    simplified = OnnxGraph(graph.role, graph.precision, named, count_mmacs(named))
    if (simplified.inputs, simplified.outputs) != before or simplified.mmacs > graph.mmacs:
        raise ExportError("onnxsim changed the graph's interface or made it dearer", where=graph.role)
    return simplified
