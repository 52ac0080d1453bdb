"""torch module -> fp32 TFLite graph, by litert-torch (the successor of ai-edge-torch), held against torch on real images.

Afterwards every layer's op bears its torch module's name, which the recipe's globs use. A module in its deployed form
becomes a graph whose input is int8, pixel - 128.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from athe_export.branches import BranchGraphSource
from athe_export.errors import ExportError, MissingDependency
from athe_export.preprocessing import GraphInput
from athe_export.runtime.litert_session import LitertSession
from athe_export.targets.equality import require_equal
from athe_export.targets.litert.graph import LitertGraph, pack, require_static, unpack
from athe_export.targets.litert.rewrite import pixels_as_int8, products_as_matmul
from athe_export.targets.quiet import quiet

_PACKAGE = re.compile(r"\b(?:\w+\.)+(?=\w)")  # of `athe_export.model.deit.Block_0/…` leave `Block_0/…`


def export(source: BranchGraphSource, images: Iterable[GraphInput]) -> LitertGraph:
    """Traces `source` at batch 1.

    Args:
        source: the module and its role.
        images: real images as the source's module takes them, for the check against torch.

    Raises:
        ExportError: litert-torch cannot convert it, or a postcondition does not hold: fixed shapes, one subgraph,
            every layer found under its name, the torch module unchanged, outputs within 1e-4 of torch on `images`.
    """
    example = torch.zeros(source.input_shape)
    before = _weights_digest(source.module)
    convert = _converter()
    try:
        with quiet():
            content = bytes(convert(source.module, (example,)).model_content())
    except Exception as err:  # the converter raises many kinds; all of them mean the same to the user
        raise ExportError(
            f"litert-torch cannot convert it: {(str(err).strip().splitlines() or [type(err).__name__])[0]}",
            where=source.role,
            remedy="remove targets.litert from the recipe to build without it, and please report the recipe",
        ) from err
    if _weights_digest(source.module) != before:
        raise ExportError("the conversion changed the torch module", where=source.role)
    content = products_as_matmul(_named(content, source))
    graph = LitertGraph(source.role, "fp32", pixels_as_int8(content) if source.pixels else content)
    require_static(graph, f"export of {source.role}")
    require_equal(LitertSession(graph.content), source, images, "export")
    return graph


def _converter() -> Callable[..., Any]:
    """litert_torch.convert, told not to print its steps; imported here since that takes seconds."""
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "no"
    try:
        with quiet():
            import litert_torch
    except Exception as err:  # a package below it that is missing or does not fit
        raise MissingDependency(
            f"litert-torch cannot be imported: {(str(err).strip().splitlines() or [type(err).__name__])[0]}",
            where="target litert",
            remedy='pip install "athe-export[build]"',
        ) from err
    return litert_torch.convert


def _named(content: bytes, source: BranchGraphSource) -> bytes:
    """The same graph with readable names: layers as in torch, one input `image`, one output as the source says."""
    model, found = unpack(content), LitertGraph(source.role, "fp32", content)
    graph, called = model.subgraphs[0], source.layers
    if doubled := [name for name, count in Counter(called).items() if count > 1]:
        raise ExportError(f"one name would stand for several layers: {', '.join(doubled[:8])}", where=source.role)
    names: dict[int, str] = {}
    signature = model.signatureDefs[0]
    for side, name in ((signature.inputs, "image"), (signature.outputs, source.output)):
        side[0].name, names[side[0].tensorIndex] = name.encode(), name
    weights = {source.layer_name(n): m.weight for n, m in source.module.named_modules() if hasattr(m, "weight")}
    layers = [(name, weights[name].numel()) for name in called]
    weighted = [(op, raw) for op, raw in zip(found.ops, graph.operators, strict=True) if op.has_weight]
    sizes = [math.prod(op.inputs[1].shape) for op, _ in weighted]
    if sizes != [values for _, values in layers]:
        raise ExportError(
            f"the graph's {len(sizes)} layers are not the {len(layers)} that torch runs, in their order", where=source.role
        )
    names |= {int(raw.outputs[0]): name for name, (_, raw) in zip(called, weighted, strict=True)}
    whole = re.compile(rf"\b{type(source.module).__name__}\b[/;]*")
    taken = {"image", source.output, *called}
    for index, tensor in enumerate(graph.tensors):
        plain = _PACKAGE.sub("", tensor.name.decode())
        short = names.get(index) or whole.sub("", plain).strip(";") or plain
        while index not in names and short in taken:
            short += "'"
        taken.add(short)
        tensor.name = short.encode()
    return pack(model)


def _weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
