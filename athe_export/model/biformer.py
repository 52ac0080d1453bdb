"""BiFormer with a static number of routed regions: Zhu et al., BiFormer: Vision Transformer with Bi-Level Routing Attention,
CVPR 2023.

A map of tokens is cut into regions x regions squares. Between blocks it is [batch, height, width, channels]; inside one,
tokens are a 2-D array [batch x tokens, channels], region by region, so that every linear layer exports as one Gemm.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athe_export.model.deit import Mlp
from athe_export.recipe import ModelSpec


class Regions:
    """How a map [batch, side, side, channels] becomes tokens [batch x side x side, channels], region by region, and back."""

    def __init__(self, count: int) -> None:
        self.count = count

    def tokens(self, x: Tensor) -> Tensor:
        """One region after the other, row by row; in each its tokens row by row."""
        side, channels = x.shape[1], x.shape[3]
        return (
            x.reshape(-1, side // self.count, self.count, side // self.count * channels)
            .transpose(1, 2)
            .reshape(-1, channels)
        )

    def map(self, tokens: Tensor, side: int) -> Tensor:
        """Inverse of `tokens`."""
        channels, edge = tokens.shape[1], side // self.count
        x = tokens.reshape(-1, self.count, edge, edge * channels).transpose(1, 2)
        return x.reshape(-1, side, side, channels)


class BiLevelRoutingAttention(nn.Module):
    """Each region's tokens attend to all tokens of the `top_k` regions that go best with it.

    Queries and keys averaged over a region give the affinity of regions, the largest of which route it; keys and values of
    these are looked up and attended to, and a depthwise convolution of the values, the local context enhancement, is added.
    With every region routed that is plain attention, and nothing is chosen.
    """

    def __init__(self, dim: int, heads: int, regions: Regions, top_k: int) -> None:
        super().__init__()
        self.heads, self.regions, self.top_k = heads, regions, top_k
        self.qkv = nn.Linear(dim, 3 * dim)
        self.context = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, batch: int, side: int) -> Tensor:
        """Tokens [batch x side x side, dim], region by region, to as many."""
        qkv, dim = self.qkv(x), x.shape[1]
        query, key_value = qkv[:, :dim], qkv[:, dim:]
        if self.top_k < self.regions.count**2:
            mixed = self._routed(query, key_value, batch)
        else:
            mixed = self._attend(query.reshape(batch, -1, dim), key_value.reshape(batch, -1, 2 * dim))
        values = self.regions.map(key_value[:, dim:], side).permute(0, 3, 1, 2)
        local = self.regions.tokens(self.context(values).permute(0, 2, 3, 1))
        y: Tensor = self.proj(mixed + local)
        return y

    def _routed(self, query: Tensor, key_value: Tensor, batch: int) -> Tensor:
        count, dim = self.regions.count**2, query.shape[1]
        region_query = query.reshape(batch, count, -1, dim).mean(2)
        region_key = key_value[:, :dim].reshape(batch, count, -1, dim).mean(2)
        routed = (region_query @ region_key.transpose(1, 2)).topk(self.top_k, dim=2).indices
        if batch > 1:
            routed = routed + count * torch.arange(batch, device=routed.device)[:, None, None]
        table = key_value.reshape(batch * count, -1)  # a row holds all keys and values of a region
        gathered = F.embedding(routed.reshape(-1), table).reshape(batch * count, -1, 2 * dim)
        return self._attend(query.reshape(batch * count, -1, dim), gathered)

    def _attend(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Queries [groups, n, dim] to keys and values [groups, m, 2 x dim] of their group: [groups x n, dim]."""
        groups, dim = query.shape[0], query.shape[2]
        head_dim = dim // self.heads
        q = (query * head_dim**-0.5).reshape(groups, -1, self.heads, head_dim).transpose(1, 2)
        k, v = key_value.reshape(groups, -1, 2, self.heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(-1, dim)


class BiFormerBlock(nn.Module):
    """A depthwise convolution for positions, routed attention, an MLP, each added to what comes in (figure 3)."""

    def __init__(self, dim: int, heads: int, hidden: int, regions: Regions, top_k: int) -> None:
        super().__init__()
        self.regions = regions
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = BiLevelRoutingAttention(dim, heads, regions, top_k)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """A map [batch, side, side, dim] to one; `depth` [2, batch] as of DeiT's blocks."""
        batch, side = x.shape[0], x.shape[1]
        x = x + self.position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = self.regions.tokens(x)
        tokens = tokens + _by_image(self.attn(self.norm1(tokens), batch, side), None if depth is None else depth[0])
        tokens = tokens + _by_image(self.mlp(self.norm2(tokens)), None if depth is None else depth[1])
        return self.regions.map(tokens, side)


class BiFormer(nn.Module):
    """Stages of blocks, each on a map half as wide and twice as deep as the one before (figure 3).

    `stochastic_depth` is as of DeiT.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.biformer is not None
        self.spec, self.stochastic_depth = spec, 0.0
        self.stem: nn.Module = nn.Identity()  # what the deployed form does to an image first
        own, regions, width = spec.biformer, Regions(spec.biformer.regions), spec.dim
        # overlapping patches of 4 pixels, in two steps
        first = [*_halving(3, width // 2), nn.GELU(), *_halving(width // 2, width)]
        self.patch_embed, self.merges, self.stages = nn.Sequential(*first), nn.ModuleList(), nn.ModuleList()
        for index, (blocks, top_k) in enumerate(zip(own.depths, own.top_k, strict=True)):
            if index:
                self.merges.append(nn.Sequential(*_halving(width, 2 * width)))
                width *= 2
            made = (
                BiFormerBlock(width, spec.heads * 2**index, int(spec.mlp_ratio * width), regions, top_k)
                for _ in range(blocks)
            )
            self.stages.append(nn.ModuleList(made))
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, spec.classes)

    @property
    def blocks(self) -> Iterator[BiFormerBlock]:
        """Every block, in order."""
        return (block for stage in self.stages for block in stage)  # type: ignore[attr-defined]

    def initialise(self, seed: int) -> None:
        """Fresh weights, fixed by `seed`: linear layers as DeiT's, convolutions of the variance that torch gives them.

        More would add up from block to block, since an untrained model's batch normalisation does not scale it back.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                inputs = module.weight[0].numel()
                nn.init.normal_(module.weight, std=(3 * inputs) ** -0.5, generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, classes] of normalised images float32 [batch, 3, size, size]."""
        x, index = self.patch_embed(self.stem(image)), 0
        for number, stage in enumerate(self.stages):
            if number:
                x = self.merges[number - 1](x)
            x = x.permute(0, 2, 3, 1)
            for block in stage:  # type: ignore[attr-defined]
                x, index = block(x, self._depth(index, x)), index + 1
            x = x.permute(0, 3, 1, 2)
        logits: Tensor = self.head(self.norm(x).mean((2, 3)))
        return logits

    def deployed(self) -> BiFormer:
        """A copy in evaluation mode; batch normalisation is folded into the layer before it, or the head behind it."""
        made = copy.deepcopy(self).eval()
        for part in (made.patch_embed, *made.merges):
            assert isinstance(part, nn.Sequential)
            for i in [i for i, layer in enumerate(part) if isinstance(layer, nn.BatchNorm2d)]:
                part[i - 1] = torch.nn.utils.fuse_conv_bn_eval(part[i - 1], part[i])  # type: ignore[type-var, arg-type]
                part[i] = nn.Identity()
        norm, head = made.norm, made.head
        with torch.no_grad():
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None and variance is not None
            scale = norm.weight / torch.sqrt(variance + norm.eps)
            head.bias.add_(head.weight @ (norm.bias - mean * scale))
            head.weight.mul_(scale)
        made.norm = nn.Identity()  # type: ignore[assignment]
        return made

    def _depth(self, index: int, x: Tensor) -> Tensor | None:
        rate = self.stochastic_depth * index / max(1, self.spec.depth - 1) if self.training else 0.0
        return (torch.rand(2, x.shape[0], device=x.device) >= rate).float() / (1 - rate) if rate else None


def _by_image(x: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return x
    return (x.unflatten(0, (scale.shape[0], -1)) * scale.to(x.dtype)[:, None, None]).flatten(0, 1)


def _halving(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """A convolution that halves the sides, and its batch normalisation."""
    return nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs)
