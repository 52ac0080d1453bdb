"""The form in which a model is exported: it begins with pixels, and computes the same in fewer and cheaper ops.

- **Pixels in.** Normalisation is linear, so the patch embedding takes it in: weight and bias are changed, and a patch is a
  row of pixels that a plain linear layer reads. A router pads its images with zeros, which are not pixels of 0: it
  normalises first.
- **Attention head by head.** The rows of `qkv` are put in the order of the heads, so that each head's queries, keys and
  values are columns of its output as they lie, and nothing of four dimensions has to be transposed. The scale of the queries
  goes into their rows.
- **The class token alone at the end.** Nothing but the class token is read behind the last block, so that its queries, and
  what follows its attention, are computed for that token alone.
- **Norms without a mean** (`centred`). LayerNorm takes away each token's mean. If every layer that adds to the tokens adds
  something of mean zero, there is none to take away, and what is left is RMSNorm (Ashkboos et al., SliceGPT, 2024, section
  3.2); its scale and offset go into the layer behind it. A scorer reads the mean, so this begins behind the last choice of
  tokens.

Layers keep their names. What is trained and what is referred to stays the plain model: see `graphs.export_graph`, where
both are held against each other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from athe_export.branches import BranchGraphSource, BranchModule
from athe_export.model.deit import Attention, Block, PatchEmbed
from athe_export.model.equalise import unfolded
from athe_export.model.tokens import Attended
from athe_export.preprocessing import Preprocessing

PLAIN, CENTRED, UNFOLDED = "plain", "centred", "unfolded"


def deployed(source: BranchGraphSource, preprocessing: Preprocessing, norms: str) -> BranchGraphSource:
    """A branch or router that takes pixels [1, size, size, 3] of 0 to 255, uint8 or float32, and gives what `source` gives.

    Args:
        source: its module is a `BranchModule`, or one whose `stem` sees the image first; it is left as it is.
        preprocessing: how its images are normalised.
        norms: `plain`: LayerNorm as it is; `centred`: without a mean, scales folded; `unfolded`: written out, scales left
            where they are.
    """
    made = copy.deepcopy(source.module)
    if isinstance(made, BranchModule):
        made = _branch(made, preprocessing, norms)
    else:
        made.stem = Normalise(preprocessing, source.image_size)
    return replace(source, module=made, pixels=True)


@torch.no_grad()
def _branch(made: BranchModule, preprocessing: Preprocessing, norms: str) -> nn.Module:
    patches = made.patch_embed = PixelPatches(made.patch_embed, preprocessing)  # type: ignore[assignment]
    blocks = [block for block in made.blocks if isinstance(block, Block)]
    for block in blocks:
        block.attn = HeadByHead(block.attn)  # type: ignore[assignment]
    if all(cut.after + cut.inside < len(blocks) for cut in made.cuts):  # else tokens are still chosen by its attention
        blocks[-1].attn.queries, blocks[-1].onward = FirstToken(), FirstToken()
    if norms == CENTRED:
        _centre(made, patches.proj, blocks)
    return unfolded(made) if norms == UNFOLDED else made


class Normalise(nn.Module):
    """Pixels [1, size, size, 3] of 0 to 255 -> normalised image float32 [1, 3, size, size].

    A row of the image at a time: engines are slow at ops of three values each.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, preprocessing: Preprocessing, size: int) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).repeat(size))
        self.register_buffer("offset", (-mean / std).repeat(size))

    def forward(self, pixels: Tensor) -> Tensor:
        rows = pixels.reshape(pixels.shape[1], -1).float() * self.scale + self.offset
        return rows.reshape(pixels.shape).permute(0, 3, 1, 2)


class PixelPatches(nn.Module):
    """Pixels [1, size, size, 3] of 0 to 255 -> patch tokens [1, patches, dim].

    A patch is a row of [patch x patch x 3] pixels. As a convolution of three channels it would be the same product, which
    engines reach by going over 256 positions of three channels each.
    """

    def __init__(self, embed: PatchEmbed, preprocessing: Preprocessing) -> None:
        super().__init__()
        weight, bias = embed.proj.weight, embed.proj.bias
        assert bias is not None
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (preprocessing.mean, preprocessing.std))
        self.patch = weight.shape[-1]
        self.proj = _linear(
            (weight / (255 * std)).permute(0, 2, 3, 1).flatten(1), bias - (weight * (mean / std)).sum((1, 2, 3))
        )

    def forward(self, pixels: Tensor) -> Tensor:
        side = pixels.shape[1] // self.patch
        rows = pixels.reshape(side, self.patch, side, 3 * self.patch).permute(0, 2, 1, 3)
        patches: Tensor = self.proj(rows.reshape(side * side, -1).float())
        return patches[None]


class HeadByHead(nn.Module):
    """`Attention` of one image, one head after the other.

    `queries` are the tokens that ask: all of them, or the class token alone.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.head_dim = attention.heads, attention.head_dim
        shape = (3, self.heads, self.head_dim)
        weight, bias = attention.qkv.weight.unflatten(0, shape).clone(), attention.qkv.bias.unflatten(0, shape).clone()
        for of_queries in (weight[0], bias[0]):
            of_queries *= self.head_dim**-0.5
        self.qkv = _linear(weight.transpose(0, 1).flatten(0, 2), bias.transpose(0, 1).flatten())
        self.proj = attention.proj
        self.queries: nn.Module = nn.Identity()

    def forward(self, x: Tensor, batch: int, keep: None = None, bias: None = None) -> tuple[Tensor, Attended]:
        """As of `Attention`, for a batch of 1 and all heads there are."""
        parts = self.qkv(x).split(self.head_dim, 1)
        mixed, probabilities = [], []
        for q, k, v in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            probabilities.append((self.queries(q) @ k.transpose(0, 1)).softmax(-1))
            mixed.append(probabilities[-1] @ v)
        output = self.proj(mixed[0] if self.heads == 1 else torch.cat(mixed, 1))
        return output, Attended(torch.stack(probabilities)[None], torch.stack(parts[2::3])[None])


class FirstToken(nn.Module):
    """Of tokens [n, dim] the first, [1, dim]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:1]


class RmsNorm(nn.Module):
    """LayerNorm of tokens of mean zero, without scale and offset."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)


class Centre(nn.Module):
    """Takes away each token's mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


def _centre(model: BranchModule, patches: nn.Linear, blocks: Sequence[Block]) -> None:
    """Norms without a mean, from behind the last choice of tokens on; before it, with the mean taken away in each."""
    start = max((cut.after + cut.inside for cut in model.cuts), default=0)
    for index, block in enumerate(blocks):
        attention, mlp = block.attn, block.mlp
        block.norm1 = _folded(block.norm1, attention.qkv, index >= start)  # type: ignore[assignment]
        block.norm2 = _folded(block.norm2, mlp.fc1, index >= start)  # type: ignore[assignment]
        if index >= start:
            _take_mean(attention.proj)
            _take_mean(mlp.fc2)
    model.norm = _folded(model.norm, model.head, start < len(blocks))  # type: ignore[assignment]
    if start:
        for block in blocks[start : start + 1]:
            block.enter = Centre()
        return
    _take_mean(patches)
    for tokens in (model.cls_token, model.pos_embed):
        tokens.sub_(tokens.mean(-1, keepdim=True))


def _folded(norm: nn.LayerNorm, layer: nn.Linear, centred: bool) -> nn.Module:
    """The norm without scale and offset, which `layer` takes in."""
    layer.bias.add_(layer.weight @ norm.bias)
    layer.weight.mul_(norm.weight)
    plain = RmsNorm(norm.eps)
    return plain if centred else nn.Sequential(Centre(), plain)


def _take_mean(layer: nn.Linear) -> None:
    """Makes what a layer gives have mean zero, whatever it is given."""
    layer.weight.sub_(layer.weight.mean(0, keepdim=True))
    layer.bias.sub_(layer.bias.mean())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
