"""What tokens are scored by, in a branch of any recipe; the highest scores are kept (`tokens.PruneStage`).

| `scorer` | scores | cut |
|---|---|---|
| `linear` | learned, a linear layer | before the next block |
| `dynamicvit` | learned, DynamicViT's prediction module | before the next block |
| `cls_attention` | attention of CLS in the block before | before the next block |
| `evit` | attention of CLS | in the next block, after its attention; the rest is fused into one token |
| `ats` | attention of CLS times the length of the values | in the next block, after its attention |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athe_export.model.tokens import PruneStage, Seen
from athe_export.recipe import BranchSpec


class LinearScorer(nn.Linear):
    """One number a token."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1)

    def forward(self, seen: Seen) -> Tensor:  # type: ignore[override]
        """Scores [batch, n]."""
        return super().forward(seen.patches).reshape(seen.batch, -1)


class TokenPredictor(nn.Module):
    """The prediction module of DynamicViT (Rao et al., NeurIPS 2021, section 3.2, eq. 1 to 5).

    A first MLP gives each token local features and, averaged over the tokens, all of them the same global ones, half of
    the width each: z_local = MLP(x), z_global = Agg(MLP(x)), z = [z_local, z_global]. A second one makes of both the
    probabilities to drop and to keep the token, pi = Softmax(MLP(z)). The score is ln(keep / drop): the order is that of
    the probability to keep, which is the score's sigmoid.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local: Tensor
        self.register_buffer("local", (torch.arange(dim) < dim // 2).float(), persistent=False)
        self.norm = nn.LayerNorm(dim)
        self.embed = nn.Linear(dim, dim)
        self.mix = nn.Linear(dim, dim // 2)
        self.narrow = nn.Linear(dim // 2, dim // 4)
        self.decide = nn.Linear(dim // 4, 2)

    def forward(self, seen: Seen) -> Tensor:
        """Scores [batch, n]."""
        z = F.gelu(self.embed(self.norm(seen.patches))).reshape(seen.batch, -1, self.embed.out_features)
        # not two halves side by side: XNNPACK does not take the op that repeats the global one for every token
        z = (z * self.local + z.mean(1, keepdim=True) * (1 - self.local)).flatten(0, 1)
        odds = self.decide(F.gelu(self.narrow(F.gelu(self.mix(z)))))
        return (odds[:, 1] - odds[:, 0]).reshape(seen.batch, -1)


class Significance(nn.Module):
    """The scores of Adaptive Token Sampling (Fayyaz et al., ECCV 2022, section 3, token scoring), summed over heads.

    S_j = A_1j |V_j| / sum_i A_1i |V_i|: the attention of CLS to a token, times the length of the token's value. Here the k
    best are taken, where the paper samples along their cumulative sum, which leaves another number in every image: a graph
    of fixed shapes cannot.
    """

    def forward(self, seen: Seen) -> Tensor:
        """Scores [batch, n]."""
        lengths = seen.attended.values[:, :, 1:].square().sum(-1).sqrt()
        worth = seen.attended.probabilities[:, :, 0, 1:] * lengths
        return (worth / worth.sum(-1, keepdim=True)).sum(1)


LEARNED: dict[str, type[LinearScorer | TokenPredictor]] = {"linear": LinearScorer, "dynamicvit": TokenPredictor}


def prune_stages(branch: BranchSpec, patches: int, learned: nn.ModuleDict | None) -> tuple[PruneStage, ...]:
    """The branch's prune stages for that many patches.

    Args:
        learned: its scorers by block, where the recipe's are learned.
    """
    stages = []
    for after, k in branch.kept_tokens(patches):
        scorer = Significance() if branch.scorer == "ats" else learned[str(after)] if learned is not None else None
        stages.append(PruneStage(after, k, scorer, inside=branch.cuts_inside, fused=branch.fuses))
    return tuple(stages)
