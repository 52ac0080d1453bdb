"""The whole ATHE model: one backbone, a scorer per branch and prune stage, a head rank and a router."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from athe_export.model.biformer import BiFormer
from athe_export.model.deit import DeiT, HeadRank
from athe_export.model.router import MobileNetV1Router
from athe_export.model.scorers import LEARNED, prune_stages
from athe_export.model.tokens import PruneStage, Trace
from athe_export.recipe import BranchSpec, Recipe

_SCORERS_OF = "of "
_BACKBONES: dict[str, type[DeiT | BiFormer]] = {"deit": DeiT, "biformer": BiFormer}


def _scorer_key(branch: str) -> str:
    """A branch's name as torch takes it: a module may be called neither `half`, like a method, nor anything with a dot."""
    return _SCORERS_OF + branch.replace(".", ",")


class AtheModel(nn.Module):
    """All branches of a recipe over shared weights; `head_rank` is None until it is measured or loaded.

    Parameter names: the backbone's as in timm without a prefix, `scorers.<branch>.<after_blocks>.*`, `router.*`.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.backbone: DeiT | BiFormer = _BACKBONES[recipe.model.arch](recipe.model)
        self.scorers = nn.ModuleDict()
        for branch in recipe.branches:
            if branch.prune and branch.scorer in LEARNED:
                stages = {str(s.after_blocks): LEARNED[branch.scorer](recipe.model.dim) for s in branch.prune}
                self.scorers[_scorer_key(branch.name)] = nn.ModuleDict(stages)
        self.router = MobileNetV1Router() if recipe.router else None
        self.head_rank: HeadRank | None = None

    @property
    def deit(self) -> DeiT:
        """The backbone of a recipe whose branches drop tokens or heads."""
        assert isinstance(self.backbone, DeiT)
        return self.backbone

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

    def stages(self, branch: BranchSpec, patches: int | None = None) -> tuple[PruneStage, ...]:
        """The branch's prune stages with their constant k, which is of the model's number of patches or another one."""
        key = _scorer_key(branch.name)
        learned = self.scorers[key] if key in self.scorers else None
        return prune_stages(branch, patches or self.recipe.model.patches, learned)  # type: ignore[arg-type]

    def tensor_names(self) -> dict[str, str]:
        """Names in a checkpoint -> names in `state_dict`, of everything that a checkpoint holds but the head rank."""
        names = {}
        for name in self.state_dict():
            part, _, rest = name.removeprefix("backbone.").partition(".")
            if part == "scorers":
                key, _, rest = rest.partition(".")
                rest = f"{key.removeprefix(_SCORERS_OF).replace(',', '.')}.{rest}"
            if not name.endswith("num_batches_tracked"):
                names[f"{part}.{rest}" if rest else part] = name
        return names

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

    def logits(self, image: Tensor, branch: BranchSpec, trace: Trace | None = None, seen: Tensor | None = None) -> Tensor:
        """The branch's logits [batch, classes], from shared weights; of fewer patches it keeps the same share.

        `seen` [batch, n]: the only patches that the network is given.
        """
        if isinstance(self.backbone, BiFormer):
            whole: Tensor = self.backbone(image)
            return whole
        patches = (image.shape[-1] // self.recipe.model.patch) ** 2 if seen is None else seen.shape[1]
        y: Tensor = self.backbone(image, self.stages(branch, patches), self.heads(branch), trace, seen)
        return y
