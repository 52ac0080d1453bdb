"""Checkpoint + branch spec -> a module in which nothing is dynamic: constant k, heads physically cut out, CLS kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from athe_export.model.athe import AtheModel
from athe_export.model.biformer import BiFormer
from athe_export.model.deit import DeiT
from athe_export.model.router import MobileNetV1Router
from athe_export.model.tokens import PruneStage, Seen, Trace
from athe_export.recipe import BranchSpec


class BranchModule(DeiT):
    """One branch on its own weights: image float32 [batch, 3, size, size] -> logits [batch, classes].

    Layer names are the backbone's, so that `keep_float` globs read as in timm; scorers are `scorers.<after_blocks>`.
    """

    def __init__(self, model: AtheModel, branch: BranchSpec) -> None:
        super().__init__(model.deit.spec)
        self.load_state_dict(model.deit.state_dict())
        heads = model.heads(branch)
        for block, keep in zip(self.blocks, heads or (), strict=False):
            block.attn = block.attn.cut(keep)  # type: ignore[operator, union-attr]
        stages = model.stages(branch)
        self.scorers = nn.ModuleDict({str(s.after): copy.deepcopy(s.scorer) for s in stages if s.scorer is not None})
        self.cuts = tuple(replace(s, scorer=None) for s in stages)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image, self._stages())

    def traced(self, image: Tensor, trace: Trace) -> Tensor:
        """The same, with what `trace` asks for written into it."""
        return super().forward(image, self._stages(), trace=trace)

    def with_tokens(self, image: Tensor, chosen: Sequence[Tensor]) -> Tensor:
        """Logits where every prune stage keeps the tokens it is told, int64 [batch, k] a stage, in place of the best."""
        told = [replace(cut, scorer=_ToldTokens(c)) for cut, c in zip(self.cuts, chosen, strict=True)]
        return super().forward(image, told)

    def _stages(self) -> list[PruneStage]:
        scorers = {cut.after: self.scorers[str(cut.after)] for cut in self.cuts if str(cut.after) in self.scorers}
        return [replace(cut, scorer=scorers.get(cut.after)) for cut in self.cuts]


class _ToldTokens(nn.Module):
    """Scores tokens so that those of `chosen` [batch, k] are the best, in their order."""

    def __init__(self, chosen: Tensor) -> None:
        super().__init__()
        self.chosen = chosen

    def forward(self, seen: Seen) -> Tensor:
        batch, k = self.chosen.shape
        ranks = torch.arange(k, 0, -1, dtype=seen.patches.dtype).expand(batch, k)
        return torch.zeros(batch, seen.patches.shape[0] // batch).scatter(1, self.chosen, ranks)


@dataclass(frozen=True)
class BranchGraphSource:
    """What a target exports under one role: a module and its input size; `output` names what it returns.

    The module takes normalised images [1, 3, size, size] or, in its deployed form, pixels [1, size, size, 3].
    """

    role: str
    module: nn.Module
    image_size: int
    output: str
    pixels: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        size = self.image_size
        return (1, size, size, 3) if self.pixels else (1, 3, size, size)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers with weights, which `keep_float` globs are matched against, in the order they run in."""
        called: list[str] = []
        named = [(n, m) for n, m in self.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        hooks = [m.register_forward_hook(lambda *_, name=n: called.append(self.layer_name(name))) for n, m in named]
        with torch.no_grad():
            self.module(torch.zeros(self.input_shape))
        for hook in hooks:
            hook.remove()
        return tuple(called)

    def layer_name(self, name: str) -> str:
        """A module's name as recipes write it: a branch's as in timm, the router's below `router.`."""
        return f"router.{name}" if self.role == "router" else name


def build_branch(model: AtheModel, branch: BranchSpec) -> BranchGraphSource:
    """The branch's fixed-shape module.

    Raises:
        ValueError: the branch drops heads and the model has no head rank.
    """
    backbone = model.backbone
    module = backbone.deployed() if isinstance(backbone, BiFormer) else BranchModule(model, branch)
    return BranchGraphSource(branch.name, module, model.recipe.model.image_size, "logits")


def build_router(model: AtheModel) -> BranchGraphSource:
    """The router with batch normalisation folded into its convolutions."""
    assert model.router is not None and model.recipe.router is not None
    router = MobileNetV1Router()
    router.load_state_dict(model.router.state_dict())
    router.eval()
    for layer in router.features:
        assert isinstance(layer, nn.Sequential)
        layer[0], layer[1] = torch.nn.utils.fuse_conv_bn_eval(layer[0], layer[1]), nn.Identity()  # type: ignore[type-var, arg-type]
    return BranchGraphSource("router", router, model.recipe.router.image_size, "difficulty")


def graph_sources(model: AtheModel) -> tuple[BranchGraphSource, ...]:
    """The router, where there is one, and every branch, easiest first."""
    branches = tuple(build_branch(model, b) for b in model.recipe.branches)
    return (build_router(model), *branches) if model.router is not None else branches
