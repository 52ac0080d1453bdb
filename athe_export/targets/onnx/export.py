"""torch module -> fp32 ONNX graph, by torch.export, held against torch on real images."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from athe_export.branches import BranchGraphSource
from athe_export.errors import ExportError
from athe_export.preprocessing import GraphInput
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.targets.equality import require_equal
from athe_export.targets.onnx.graph import OnnxGraph, count_mmacs, require_static
from athe_export.targets.quiet import quiet


def export(source: BranchGraphSource, opset: int, images: Iterable[GraphInput]) -> OnnxGraph:
    """Traces `source` at batch 1.

    Args:
        source: the module and its role.
        opset: ONNX opset.
        images: real images as the source's module takes them, for the check against torch.

    Raises:
        ExportError: torch cannot export it, or a postcondition does not hold: fixed shapes, no control flow, every
            node named, outputs within 1e-4 of torch on `images`.
    """
    example = torch.zeros(source.input_shape, dtype=torch.uint8 if source.pixels else torch.float32)
    try:
        with quiet():
            program = torch.onnx.export(
                source.module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=[source.output],
                verbose=False,
            )
    except Exception as err:  # the exporter raises many kinds; all of them mean the same to the user
        raise ExportError(
            f"torch cannot export it at opset {opset}: {_reason(err)}",
            where=source.role,
            remedy="try targets.onnx.opset: 20; if that fails too, please report it with the recipe",
        ) from err
    assert program is not None
    model = program.model_proto
    if next(o.version for o in model.opset_import if o.domain == "") != opset:
        raise ExportError(f"the graph is not at opset {opset}", where=source.role, remedy="try targets.onnx.opset: 20")
    require_static(model, f"export of {source.role}")
    graph = OnnxGraph(source.role, "fp32", model, count_mmacs(model))
    require_equal(OnnxSession(graph.content), source, images, "export")
    return graph


def _reason(err: BaseException) -> str:
    """First line of the innermost cause, which names the op; the outer ones only say that the export failed."""
    while err.__cause__ is not None:
        err = err.__cause__
    said = str(err).strip().splitlines() or [type(err).__name__]
    return re.sub(r"\x1b\[[0-9;]*m", "", said[0])
