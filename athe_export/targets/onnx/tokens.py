"""Which tokens an ONNX branch keeps: copies of the graph that end where a prune stage has chosen."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, shape_inference


def token_graphs(content: bytes) -> tuple[bytes, ...]:
    """One cut copy of a branch's graph a prune stage, in order; its only output are the chosen tokens, int64 [1, k].

    A graph gives no such output itself: whoever runs it needs none, and one that is not read would still be computed.
    """
    model = shape_inference.infer_shapes(onnx.load_from_string(content))
    return tuple(_ending_at(model, node) for node in model.graph.node if node.op_type == "TopK")


def _ending_at(model: ModelProto, last: NodeProto) -> bytes:
    """The part of the graph that the second output of `last`, the indices, is computed from."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    wanted, todo = set(), [last.output[1]]
    while todo:
        name = todo.pop()
        if name in wanted:
            continue
        wanted.add(name)
        if name in made_by:
            todo += [n for n in made_by[name].input if n]
    cut = ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    nodes = [n for n in graph.node if any(name in wanted for name in n.output)]
    stored = [i for i in graph.initializer if i.name in wanted]
    (indices,) = [v for v in graph.value_info if v.name == last.output[1]]
    for field, values in ((graph.node, nodes), (graph.initializer, stored), (graph.output, [indices])):
        kept = [type(v).FromString(v.SerializeToString()) for v in values]
        del field[:]
        field.extend(kept)
    del graph.value_info[:]
    return cut.SerializeToString(deterministic=True)
