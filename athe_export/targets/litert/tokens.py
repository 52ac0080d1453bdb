"""Which tokens a TFLite branch keeps: copies of the graph that end where a prune stage has chosen."""

from __future__ import annotations

from athe_export.targets.litert.graph import LitertGraph, pack, unpack


def token_graphs(content: bytes) -> tuple[bytes, ...]:
    """One cut copy of a branch's graph a prune stage, in order; its only output are the chosen tokens, int32 [1, k].

    Ops stand in the order they run in, so that what follows a choice can be left off.
    """
    kinds = [op.kind for op in LitertGraph("", "", content).ops]
    return tuple(_ending_at(content, index) for index, kind in enumerate(kinds) if kind == "TOPK_V2")


def _ending_at(content: bytes, last: int) -> bytes:
    model = unpack(content)
    graph = model.subgraphs[0]
    graph.operators = graph.operators[: last + 1]
    graph.outputs = [int(graph.operators[last].outputs[1])]
    model.signatureDefs = []  # they name the output that is gone
    return pack(model)
