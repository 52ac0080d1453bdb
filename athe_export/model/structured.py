"""Structured pruning: a wider DeiT's weights to those of a narrower one, channel by channel, the most important ones kept.

As in PQV-Mobile (Bhardwaj, PQV-Mobile: A Combined Pruning and Quantization Toolkit to Optimize Vision Transformers for
Mobile Applications, 2024): channels that hang together go together (Fang et al., DepGraph, CVPR 2023, section 3.2), ranked
by magnitude, Taylor or Hessian importance, and the same share of every layer goes. Three kinds of them make up a DeiT:

- its width: the residual stream's, in all layers at once;
- a block's hidden channels: a row of `mlp.fc1` and the column of `mlp.fc2`;
- a head's channels: the rows of query, key and value and the column of `attn.proj`; every head loses as many.

What is left is again a DeiT, smaller by its recipe's `model`. Channels that go are not made up for: that takes training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from athe_export.errors import CheckpointError
from athe_export.model.checkpoint import Checkpoint
from athe_export.model.deit import DeiT
from athe_export.recipe import ModelSpec, Recipe

_WIDTH, _HIDDEN, _HEADS = "width", "hidden", "heads"
# axis -> kind of channel, of each tensor; those of a block without `blocks.<n>.`
_AXES = {
    "cls_token": {2: _WIDTH},
    "pos_embed": {2: _WIDTH},
    "patch_embed.proj.weight": {0: _WIDTH},
    "patch_embed.proj.bias": {0: _WIDTH},
    **{f"{norm}.{part}": {0: _WIDTH} for norm in ("norm", "norm1", "norm2") for part in ("weight", "bias")},
    "attn.qkv.weight": {0: _HEADS, 1: _WIDTH},
    "attn.qkv.bias": {0: _HEADS},
    "attn.proj.weight": {0: _WIDTH, 1: _HEADS},
    "attn.proj.bias": {0: _WIDTH},
    "mlp.fc1.weight": {0: _HIDDEN, 1: _WIDTH},
    "mlp.fc1.bias": {0: _HIDDEN},
    "mlp.fc2.weight": {0: _WIDTH, 1: _HIDDEN},
    "mlp.fc2.bias": {0: _WIDTH},
    "head.weight": {1: _WIDTH},
}
Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images [n, 3, size, size] and their labels int64 [n]


def narrowed(checkpoint: Checkpoint, recipe: Recipe, images: Batches, where: str) -> tuple[Checkpoint, str | None]:
    """The checkpoint with its backbone pruned to the recipe's sizes, and what was done; as it is where it has them already.

    Args:
        images: what Taylor and Hessian importance are measured on, `checkpoint.structured.images` at most.

    Raises:
        CheckpointError: it holds no DeiT, or one that is narrower somewhere.
        ValueError: these importances are asked for, and there are no images.
    """
    spec = recipe.checkpoint.structured
    assert spec is not None
    wide = _spec_of(checkpoint, recipe.model, where)
    if (wide.dim, _hidden(wide)) == (recipe.model.dim, _hidden(recipe.model)):
        return checkpoint, None
    own = {n: t for n, t in checkpoint.tensors.items() if _axes(n) or n == "head.bias"}
    backbone = _filled(wide, own, where)
    kept = _kept(importance(backbone, spec.importance, images), wide, recipe.model)
    tensors = dict(checkpoint.tensors) | {n: _cut(n, t, kept, wide, recipe.model) for n, t in own.items()}
    said = (
        f"pruned by {spec.importance} importance: width {wide.dim} to {recipe.model.dim}, channels of a head "
        f"{wide.head_dim} to {recipe.model.head_dim}, hidden channels {_hidden(wide)} to {_hidden(recipe.model)}"
    )
    return replace(checkpoint, tensors=tensors), said


@torch.enable_grad()
def importance(backbone: DeiT, kind: str, images: Batches) -> dict[str, Tensor]:
    """What each single weight w of the backbone is worth, by name, in its shape.

    - `magnitude`: w^2, the group's squared L2 norm once summed (Li et al., Pruning Filters for Efficient ConvNets, 2017,
      section 3.1, with the squares in place of the absolute values);
    - `taylor`: |w g|, the loss's first-order change without w, of the gradient g over all images (Molchanov et al.,
      Importance Estimation for Neural Network Pruning, 2019, where it is squared);
    - `hessian`: h w^2 / 2, the second-order change with a diagonal Hessian (LeCun et al., Optimal Brain Damage, 1989,
      section 2), of which h is taken as the mean of the squared gradients of single images (the empirical Fisher).
    """
    weights = dict(backbone.eval().named_parameters())
    if kind == "magnitude":
        return {n: w.detach().square() for n, w in weights.items()}
    slopes, seen = {n: torch.zeros_like(w) for n, w in weights.items()}, 0
    for batch, labels in images:
        step = len(batch) if kind == "taylor" else 1
        for i in range(0, len(batch), step):
            loss = F.cross_entropy(backbone(batch[i : i + step]), labels[i : i + step], reduction="sum")
            for name, slope in zip(weights, torch.autograd.grad(loss, tuple(weights.values())), strict=True):
                slopes[name] += slope if kind == "taylor" else slope.square()
        seen += len(batch)
    if not seen:
        raise ValueError(f"{kind} importance needs images")
    if kind == "taylor":
        return {n: (w.detach() * slopes[n] / seen).abs() for n, w in weights.items()}
    return {n: w.detach().square() * slopes[n] / (2 * seen) for n, w in weights.items()}


def _axes(name: str) -> dict[int, str]:
    return _AXES.get(re.sub(r"^blocks\.\d+\.", "", name), {})


def _group(name: str, kind: str) -> str:
    """Channels that go together: the width everywhere, the other two in each block of their own."""
    return kind if kind == _WIDTH else f"{kind} {name.split('.')[1]}"


def _hidden(spec: ModelSpec) -> int:
    return int(spec.dim * spec.mlp_ratio)


def _spec_of(checkpoint: Checkpoint, wanted: ModelSpec, where: str) -> ModelSpec:
    """The sizes of the DeiT in a checkpoint.

    Raises:
        CheckpointError: there is none, or a size is below the wanted one.
    """
    width, hidden = checkpoint.tensors.get("cls_token"), checkpoint.tensors.get("blocks.0.mlp.fc1.weight")
    if width is None or hidden is None:
        raise CheckpointError("holds no DeiT to prune", where=where, remedy="give a checkpoint under timm's names")
    ratio = (hidden.shape[0] + 0.5) / width.shape[-1]  # of which the whole part times the width is exact
    wide = replace(wanted, dim=width.shape[-1], mlp_ratio=ratio)
    if wide.dim < wanted.dim or _hidden(wide) < _hidden(wanted) or wide.dim % wide.heads:
        raise CheckpointError(
            f"cannot be pruned to the recipe's model: width {wide.dim} and {_hidden(wide)} hidden channels there, "
            f"{wanted.dim} and {_hidden(wanted)} here, {wanted.heads} heads",
            where=where,
            remedy="give a wider model of as many heads, or correct model in the recipe",
        )
    return wide


def _filled(wide: ModelSpec, tensors: dict[str, Tensor], where: str) -> DeiT:
    backbone = DeiT(wide)
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as err:
        raise CheckpointError(
            "is not the recipe's model with other widths: " + "; ".join(line.strip() for line in str(err).splitlines()[1:4]),
            where=where,
            remedy="correct model in the recipe: depth, heads, patch, image_size and classes must be the checkpoint's",
        ) from None
    return backbone


def _kept(worth: dict[str, Tensor], wide: ModelSpec, narrow: ModelSpec) -> dict[str, Tensor]:
    """Which channels of each group stay, ascending."""
    summed: dict[str, Tensor] = {}
    for name, values in worth.items():
        for axis, kind in _axes(name).items():
            own = values.transpose(0, axis).flatten(1).sum(1) if values.dim() > 1 else values
            if kind == _HEADS and ".qkv." in name:
                own = own.reshape(3, -1).sum(0)
            group = _group(name, kind)
            summed[group] = summed[group] + own if group in summed else own
    return {group: _best(values, group.split()[0], wide, narrow) for group, values in summed.items()}


def _best(values: Tensor, kind: str, wide: ModelSpec, narrow: ModelSpec) -> Tensor:
    if kind == _HEADS:
        best = values.reshape(wide.heads, -1).topk(narrow.head_dim, 1).indices.sort(1).values
        return (best + wide.head_dim * torch.arange(wide.heads)[:, None]).flatten()
    return values.topk(narrow.dim if kind == _WIDTH else _hidden(narrow)).indices.sort().values


def _cut(name: str, tensor: Tensor, kept: dict[str, Tensor], wide: ModelSpec, narrow: ModelSpec) -> Tensor:
    """The tensor with the kept channels alone. Queries make up for the narrower heads' other scale of attention."""
    for axis, kind in _axes(name).items():
        index = kept[_group(name, kind)]
        if kind == _HEADS and ".qkv." in name:
            index = (index + wide.dim * torch.arange(3)[:, None]).flatten()
        tensor = tensor.index_select(axis, index)
    if ".qkv." in name:
        tensor = tensor.clone()
        tensor[: narrow.dim] *= (narrow.head_dim / wide.head_dim) ** 0.5
    return tensor
