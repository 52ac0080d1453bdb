"""The recipe's `model` and `branches`: the backbone, and the paths through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from athe_export.schema import key

NAME = r"[a-z0-9][a-z0-9_.-]*"
CUTTING_INSIDE = ("evit", "ats")  # scorers that look at a block's attention, before its MLP
FUSING = ("evit",)


@dataclass(frozen=True)
class BiFormerSpec:
    depths: tuple[int, ...] = key("blocks of each stage", min=1, max=64)
    top_k: tuple[int, ...] = key("regions that a region attends to, in each stage", min=1, max=4096)
    regions: int = key("regions of a map along each side", default=7, min=1, max=64)


@dataclass(frozen=True)
class ModelSpec:
    """Of a BiFormer `patch`, `dim`, `heads` are the first stage's; each stage after it has twice the width and heads."""

    arch: Literal["deit", "biformer"] = key("backbone family")
    image_size: int = key("input height and width, pixels", min=8, max=1024)
    patch: int = key("patch height and width, pixels", min=1, max=256)
    dim: int = key("embedding width", min=8, max=4096)
    depth: int = key("number of blocks", min=1, max=64)
    heads: int = key("attention heads a block", min=1, max=64)
    classes: int = key("number of classes", min=2, max=100000)
    mlp_ratio: float = key("hidden width of the MLP over dim", default=4.0, above=0, max=16)
    biformer: BiFormerSpec | None = key("stages of a BiFormer; null: for any other arch", default=None)

    @property
    def patches(self) -> int:
        """Number of patch tokens of an image, the CLS token not counted."""
        return (self.image_size // self.patch) ** 2

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True)
class PruneSpec:
    after_blocks: int = key("tokens are pruned after this many blocks", min=1, max=64)
    keep: float = key("share of the patch tokens reaching that block that is kept", above=0, max=1)


@dataclass(frozen=True)
class BranchSpec:
    name: str = key("branch name", pattern=NAME)
    heads: int = key("heads kept in every block, the best by rank", min=1, max=64)
    prune: tuple[PruneSpec, ...] = key("where tokens are pruned; none: dense", default=())
    scorer: Literal["linear", "cls_attention", "dynamicvit", "evit", "ats"] = key("token scores", default="linear")

    @property
    def cuts_inside(self) -> bool:
        """Whether tokens go in the block behind a stage, between its attention and its MLP, in place of before it."""
        return self.scorer in CUTTING_INSIDE

    @property
    def fuses(self) -> bool:
        """Whether the tokens that go are fused into one that stays."""
        return self.scorer in FUSING

    def kept_tokens(self, patches: int) -> tuple[tuple[int, int], ...]:
        """(after_blocks, k) per prune stage; k = round-half-up of keep x those of the patch tokens that reach it.

        A fused token is not in k, but is among those that reach the next stage.
        """
        stages, tokens = [], patches
        for stage in self.prune:
            kept = int(stage.keep * tokens + 0.5)
            stages.append((stage.after_blocks, kept))
            tokens = kept + self.fuses
        return tuple(stages)
