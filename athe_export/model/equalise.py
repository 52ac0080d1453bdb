"""Folding LayerNorm's scale into the linear layer behind it, so that one int8 scale serves all channels.

An activation has one scale for all its channels, and LayerNorm gives some of them a far larger range than others. Dividing a
channel by s in LayerNorm and multiplying the layer's column by s changes nothing in exact arithmetic:

- s = max|x|^alpha / max|w|^(1 - alpha), a channel at a time: SmoothQuant (Xiao et al., 2023, section 4);
- with `shift`, the middle of each channel's range is first moved to 0 and given back by the layer's bias; with alpha 1 all
  channels then have one and the same range, which is RepQ-ViT's reparameterisation (Li et al., 2023).

The converter to LiteRT would undo it: it multiplies LayerNorm's scale into the layer behind it, whatever that scale is. So
for that target the equalised norms are written out as `UnfoldedLayerNorm`.

It is done on the weights that the branches share, before they are cut out: ranges are taken over all branches, and their
layers stay the same but for the heads left out. What attention and GELU give to `attn.proj` and `mlp.fc2` is left as it is,
since no LayerNorm stands before them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from athe_export.errors import ExportError
from athe_export.model.athe import AtheModel
from athe_export.model.deit import DeiT
from athe_export.recipe import EqualiseSpec

MAX_ERROR = 1e-4  # of a logit, as of every exported graph
_SMALLEST = 1e-5  # of a range: a channel that is always 0 has none


@dataclass(frozen=True)
class ChannelRange:
    """Smallest and largest value of each channel of a LayerNorm's output, float32 [dim] each."""

    low: Tensor
    high: Tensor


class UnfoldedLayerNorm(nn.Module):
    """A LayerNorm whose scale the converter to LiteRT leaves where it is, since what is multiplied last is no constant."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """LayerNorm over the last dimension."""
        centred = x - x.mean(-1, keepdim=True)
        return centred * self.weight * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps) + self.bias


def unfolded(module: nn.Module) -> nn.Module:
    """A copy of a branch with every LayerNorm written out; the same function up to rounding."""
    made = copy.deepcopy(module)
    norms = [(parent, n, c) for parent in made.modules() for n, c in parent.named_children() if isinstance(c, nn.LayerNorm)]
    for parent, name, norm in norms:
        setattr(parent, name, UnfoldedLayerNorm(norm))
    return made


def norm_pairs(backbone: DeiT) -> Iterator[tuple[str, nn.LayerNorm, nn.Linear]]:
    """Every LayerNorm whose output one linear layer alone reads, with its name and that layer."""
    for i, block in enumerate(backbone.blocks):
        yield f"blocks.{i}.norm1", block.norm1, block.attn.qkv  # type: ignore[union-attr,misc]
        yield f"blocks.{i}.norm2", block.norm2, block.mlp.fc1  # type: ignore[union-attr,misc]
    yield "norm", backbone.norm, backbone.head


@torch.no_grad()
def measure_ranges(model: AtheModel, images: Mapping[str, Iterable[Tensor]]) -> dict[str, ChannelRange]:
    """Each LayerNorm's ranges by name, over all branches.

    Args:
        model: in evaluation mode.
        images: of every branch by name, in batches float32 [batch, 3, size, size].

    Raises:
        ValueError: no image at all.
    """
    found: dict[str, ChannelRange] = {}

    def watch(name: str, output: Tensor) -> None:
        rows = output.reshape(-1, output.shape[-1])
        low, high = rows.amin(0), rows.amax(0)
        if name in found:
            low, high = torch.minimum(low, found[name].low), torch.maximum(high, found[name].high)
        found[name] = ChannelRange(low, high)

    hooks = [
        norm.register_forward_hook(lambda _m, _i, output, name=name: watch(name, output))
        for name, norm, _ in norm_pairs(model.deit)
    ]
    try:
        for branch in model.recipe.branches:
            for batch in images[branch.name]:
                model.logits(batch, branch)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("equalisation needs images")
    return found


@torch.no_grad()
def equalised(model: AtheModel, ranges: Mapping[str, ChannelRange], spec: EqualiseSpec) -> AtheModel:
    """A copy of the model, folded; the same function up to rounding.

    Args:
        ranges: of `measure_ranges`.
    """
    made = copy.deepcopy(model)
    for name, norm, linear in norm_pairs(made.deit):
        _fold(norm, linear, ranges[name], spec)
    return made


def _fold(norm: nn.LayerNorm, linear: nn.Linear, found: ChannelRange, spec: EqualiseSpec) -> None:
    """In float64, so that only the final weights are rounded."""
    low, high = found.low.double(), found.high.double()
    middle = (low + high) / 2 if spec.shift else torch.zeros_like(low)
    greatest = torch.maximum((low - middle).abs(), (high - middle).abs()).clamp(min=_SMALLEST)
    heaviest = linear.weight.double().abs().amax(0).clamp(min=_SMALLEST)
    scale = greatest**spec.alpha / heaviest ** (1 - spec.alpha)
    weight = linear.weight.double()
    linear.bias.copy_(linear.bias.double() + weight @ middle)
    linear.weight.copy_(weight * scale)
    norm.weight.copy_(norm.weight.double() / scale)
    norm.bias.copy_((norm.bias.double() - middle) / scale)


@torch.no_grad()
def require_same(before: AtheModel, after: AtheModel, images: Mapping[str, Iterable[Tensor]]) -> float:
    """The largest difference of a logit of any branch, at most 1e-4.

    Args:
        images: as of `measure_ranges`.

    Raises:
        ExportError: it is larger, or not finite.
    """
    worst = 0.0
    for branch in before.recipe.branches:
        for batch in images[branch.name]:
            error = float((after.logits(batch, branch) - before.logits(batch, branch)).abs().max())
            if not error <= MAX_ERROR:
                raise ExportError(
                    f"equalisation changes a logit by {error:.2e}; the most allowed is {MAX_ERROR:.0e}",
                    where=f"equalise, branch {branch.name}",
                    remedy="use a smaller equalise.alpha, or leave `equalise` out",
                )
            worst = max(worst, error)
    return worst
