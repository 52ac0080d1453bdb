"""DeiT: a vision transformer with timm's parameter names, written so that pruned paths through it are static.

Touvron et al., Training data-efficient image transformers & distillation through attention, 2021 (no distillation
token). Tokens are kept as a 2-D array [batch x tokens, dim], so that every linear layer exports as one Gemm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athe_export.model.tokens import Attended, PruneStage, Trace, cut_tokens
from athe_export.recipe import ModelSpec

HeadRank = tuple[tuple[int, ...], ...]  # per block, head indices, best first


class Attention(nn.Module):
    """Multi-head self-attention over [batch x tokens, dim]; `heads` may be fewer than dim / head_dim."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(
        self, x: Tensor, batch: int, keep: Sequence[int] | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Attended]:
        """Output [batch x tokens, dim], and how it came about.

        `bias` [batch, tokens] is added to every query's attention logits (training of the scorers alone).
        """
        heads = self.heads if keep is None else len(keep)
        qkv_w, qkv_b, proj_w = self.weights_of(keep)
        qkv = (self.qkv(x) if keep is None else F.linear(x, qkv_w, qkv_b)).reshape(batch, -1, 3, heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias[:, None, None, :]
        probabilities = logits.softmax(-1)
        mixed = (probabilities @ v).transpose(1, 2).reshape(x.shape[0], heads * self.head_dim)
        output = self.proj(mixed) if keep is None else F.linear(mixed, proj_w, self.proj.bias)
        return output, Attended(probabilities, v)

    def weights_of(self, keep: Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
        """qkv weight, qkv bias and proj weight of the heads in `keep`; None: all."""
        if keep is None:
            return self.qkv.weight, self.qkv.bias, self.proj.weight
        # stacked, not indexed: an index would have to be copied to an accelerator in every block
        weight = self.qkv.weight.unflatten(0, (3, self.heads, self.head_dim))
        bias = self.qkv.bias.unflatten(0, (3, self.heads, self.head_dim))
        proj = self.proj.weight.unflatten(1, (self.heads, self.head_dim))
        weight, bias, proj = (torch.stack([part[:, head] for head in keep], 1) for part in (weight, bias, proj))
        return weight.flatten(0, 2), bias.flatten(), proj.flatten(1, 2)

    def cut(self, keep: Sequence[int]) -> Attention:
        """A smaller attention that has only the heads in `keep`: their rows of qkv, their columns of proj."""
        cut = Attention(self.qkv.in_features, len(keep), self.head_dim)
        with torch.no_grad():
            weight, bias, proj = self.weights_of(keep)
            cut.qkv.weight.copy_(weight)
            cut.qkv.bias.copy_(bias)
            cut.proj.weight.copy_(proj)
            cut.proj.bias.copy_(self.proj.bias)
        return cut


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.dim, eps=1e-6)
        self.attn = Attention(spec.dim, spec.heads, spec.head_dim)
        self.norm2 = nn.LayerNorm(spec.dim, eps=1e-6)
        self.mlp = Mlp(spec.dim, int(spec.dim * spec.mlp_ratio))
        self.enter: nn.Module = nn.Identity()  # what the deployed form does to tokens first
        self.onward: nn.Module = nn.Identity()  # which of them it goes on with behind the attention

    def forward(
        self,
        x: Tensor,
        batch: int,
        keep: Sequence[int] | None = None,
        bias: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> tuple[Tensor, Attended]:
        """`depth` [2, batch] scales what attention and MLP add to each image (stochastic depth); None: by 1."""
        x, attended = self.attend(x, batch, keep, bias, depth)
        return self.feed(x, depth), attended

    def attend(
        self, x: Tensor, batch: int, keep: Sequence[int] | None, bias: Tensor | None, depth: Tensor | None
    ) -> tuple[Tensor, Attended]:
        """The first half of the block."""
        x = self.enter(x)
        mixed, attended = self.attn(self.norm1(x), batch, keep, bias)
        return self.onward(x) + (mixed if depth is None else _by_image(mixed, depth[0])), attended

    def feed(self, x: Tensor, depth: Tensor | None) -> Tensor:
        """The second half of the block."""
        mixed = self.mlp(self.norm2(x))
        return x + (mixed if depth is None else _by_image(mixed, depth[1]))


def _by_image(x: Tensor, scale: Tensor) -> Tensor:
    """x [batch x tokens, dim] times each image's entry of `scale` [batch]."""
    return (x.unflatten(0, (scale.shape[0], -1)) * scale.to(x.dtype)[:, None, None]).flatten(0, 1)


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, patches, dim]."""
        y: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return y


class DeiT(nn.Module):
    """The backbone; `forward` runs it dense, or pruned by `stages` and restricted to `heads` per block.

    `stochastic_depth` is the share of images that pass the last block by in training, less in the blocks before it
    (Huang et al., Deep Networks with Stochastic Depth, 2016, section 3, linear decay).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stochastic_depth = 0.0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.patches + 1, spec.dim))
        self.patch_embed = PatchEmbed(spec.patch, spec.dim)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim, eps=1e-6)
        self.head = nn.Linear(spec.dim, spec.classes)

    def initialise(self, seed: int) -> None:
        """Fresh weights: truncated normal of 0.02, as DeiT's published code does, zero biases; fixed by `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(tensor)
            elif "norm" in name:
                nn.init.ones_(tensor)
            else:
                nn.init.trunc_normal_(tensor, std=0.02, generator=generator)

    def forward(
        self,
        image: Tensor,
        stages: Sequence[PruneStage] = (),
        heads: Sequence[Sequence[int]] | None = None,
        trace: Trace | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Logits [batch, classes] of normalised images float32 [batch, 3, image_size, image_size].

        With other image sizes (progressive training) the position embedding is interpolated. Of all patches only those
        of `seen` [batch, n] are looked at; None: all. What a `trace` is given for is written into it.
        """
        batch = image.shape[0]
        x, bias = self.embed(image, seen), None
        behind = {stage.after: stage for stage in stages if not stage.inside}
        inside = {stage.after: stage for stage in stages if stage.inside}
        for index, block in enumerate(self.blocks):
            keep, depth = heads[index] if heads else None, self._depth(index, x, batch)
            if index in inside:
                x, attended = block.attend(x, batch, keep, bias, depth)  # type: ignore[operator]
                x, bias = cut_tokens(x, batch, inside[index], attended, trace, self.training)
                x = block.feed(x, depth)  # type: ignore[operator]
            else:
                x, attended = block(x, batch, keep, bias, depth)
            if trace is not None:
                trace.cls_attention.append(attended.probabilities[:, :, 0, 1:])
            if index + 1 in behind:
                x, bias = cut_tokens(x, batch, behind[index + 1], attended, trace, self.training)
        tokens = x.reshape(batch, -1, x.shape[-1])
        if trace is not None:
            trace.tokens = tokens
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits

    def embed(self, image: Tensor, seen: Tensor | None = None) -> Tensor:
        """Tokens [batch x (patches + 1), dim], CLS first in each image; of the patches only those of `seen` [batch, n]."""
        patches = self.patch_embed(image)
        tokens = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), patches], 1)
        tokens = tokens + self._positions(patches.shape[1])
        if seen is not None:
            chosen = F.pad(seen + 1, (1, 0))  # and the CLS token
            tokens = tokens.gather(1, chosen[:, :, None].expand(-1, -1, tokens.shape[2]))
        return tokens.flatten(0, 1)

    def _positions(self, patches: int) -> Tensor:
        return self.pos_embed if patches + 1 == self.pos_embed.shape[1] else resize_positions(self.pos_embed, patches)

    def _depth(self, index: int, x: Tensor, batch: int) -> Tensor | None:
        """Each image's factors for what a block adds, [2, batch]: 0 at the block's rate, else 1 / (1 - rate)."""
        rate = self.stochastic_depth * index / max(1, self.spec.depth - 1) if self.training else 0.0
        if not rate:
            return None
        return (torch.rand(2, batch, device=x.device) >= rate).float() / (1 - rate)


def resize_positions(positions: Tensor, patches: int) -> Tensor:
    """A position embedding [1, 1 + old x old, dim] for another square grid, bicubic: [1, 1 + patches, dim]."""
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(patches)
    grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=new < old)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
