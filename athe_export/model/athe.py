"""The whole ATHE model: one backbone, a scorer per branch and prune stage, a head rank and a router."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from athe_export.model.deit import DeiT, HeadRank, PruneStage, Trace
from athe_export.model.router import MobileNetV1Router
from athe_export.recipe import BranchSpec, Recipe


class AtheModel(nn.Module):
    """All branches of a recipe over shared weights; `head_rank` is None until it is measured or loaded.

    Parameter names: the backbone's as in timm without a prefix, `scorers.<branch>.<after_blocks>.*`, `router.*`.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.backbone = DeiT(recipe.model)
        self.scorers = nn.ModuleDict()
        for branch in recipe.branches:
            if branch.prune and branch.scorer == "linear":
                stages = {str(s.after_blocks): nn.Linear(recipe.model.dim, 1) for s in branch.prune}
                self.scorers[branch.name] = nn.ModuleDict(stages)
        self.router = MobileNetV1Router() if recipe.router else None
        self.head_rank: HeadRank | None = None

    def initialise(self, seed: int) -> None:
        """Fresh weights, fixed by `seed`."""
        self.backbone.initialise(seed)
        generator = torch.Generator().manual_seed(seed + 2)
        for module in self.scorers.modules():
            if isinstance(module, nn.Linear):  # not zero: equal scores would leave the choice of tokens to chance
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        if self.router is not None:
            self.router.initialise(seed + 1)

    def stages(self, branch: BranchSpec) -> tuple[PruneStage, ...]:
        """The branch's prune stages with their constant k."""
        scorers = self.scorers[branch.name] if branch.name in self.scorers else None
        return tuple(
            PruneStage(after, k, scorers[str(after)] if scorers is not None else None)  # type: ignore[index]
            for after, k in branch.kept_tokens(self.recipe.model)
        )

    def heads(self, branch: BranchSpec) -> Sequence[Sequence[int]] | None:
        """Heads of each block that the branch keeps, ascending; None: all of them.

        Raises:
            ValueError: the branch drops heads and no rank is known yet.
        """
        if branch.heads == self.recipe.model.heads:
            return None
        if self.head_rank is None:
            raise ValueError(f"branch {branch.name} keeps {branch.heads} heads and no head rank is known")
        return tuple(tuple(sorted(rank[: branch.heads])) for rank in self.head_rank)

    def logits(self, image: Tensor, branch: BranchSpec, trace: Trace | None = None) -> Tensor:
        """The branch's logits [batch, classes], from shared weights."""
        y: Tensor = self.backbone(image, self.stages(branch), self.heads(branch), trace)
        return y
