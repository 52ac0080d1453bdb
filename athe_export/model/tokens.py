"""Choosing tokens in a forward pass: where, by what score, and what becomes of those that are not kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PruneStage:
    """Keep the `k` patch tokens with the highest score, after block `after`; no scorer: CLS attention of the last block.

    `inside`: not before the next block but in it, between its attention, which then is the last one, and its MLP.
    `fused`: what is not kept stays as one token, the last.
    """

    after: int
    k: int
    scorer: nn.Module | None
    inside: bool = False
    fused: bool = False


class Attended(NamedTuple):
    """Of a block's attention: probabilities [batch, heads, tokens, tokens] and values [batch, heads, tokens, head_dim]."""

    probabilities: Tensor
    values: Tensor

    @property
    def by_class(self) -> Tensor:
        """The attention that CLS pays to the patches, mean over heads, [batch, patches]."""
        return self.probabilities[:, :, 0, 1:].mean(1)


class Seen(NamedTuple):
    """What a scorer scores [batch, n] by: patch tokens [batch x n, dim], and the last attention over them and CLS."""

    patches: Tensor
    batch: int
    attended: Attended


@dataclass
class Trace:
    """What a forward pass saw, for training: CLS attention to the patches, [batch, heads, patches] per block, the first
    prune stage's scores [batch, patches], which patches remained [batch, k], and the last block's [batch, 1 + k, dim].

    Among the patches that remained, -n is the token that prune stage n has fused, where the branch fuses any.
    """

    cls_attention: list[Tensor] = field(default_factory=list)
    scores: Tensor | None = None
    kept: Tensor | None = None
    tokens: Tensor | None = None
    stages: int = 0
    fused: bool = False

    def keep(self, index: Tensor, fused: bool) -> None:
        """What reached a stage stays at `index` [batch, k]; `fused`: the last of it is what the stage before has fused."""
        if self.kept is not None:
            reaching = F.pad(self.kept, (0, 1), value=-self.stages) if fused else self.kept
            index = reaching.gather(1, index)
        self.kept, self.stages, self.fused = index, self.stages + 1, fused


def cut_tokens(
    x: Tensor, batch: int, stage: PruneStage, attended: Attended, trace: Trace | None, training: bool
) -> tuple[Tensor, Tensor | None]:
    """The remaining tokens and, in training, the attention bias that carries a learned scorer's gradient.

    Args:
        x: CLS and patches of every image, [batch x tokens, dim].
        attended: of the last attention over these tokens.
    """
    tokens = x.reshape(batch, -1, x.shape[-1])
    patches, by_class = tokens[:, 1:].flatten(0, 1), attended.by_class
    scores = by_class if stage.scorer is None else stage.scorer(Seen(patches, batch, attended))
    if trace is not None and trace.scores is None:
        trace.scores = scores
    learns = training and stage.scorer is not None and any(True for _ in stage.scorer.parameters())
    index = choose_tokens(scores, stage.k, explore=learns)
    if trace is not None:
        trace.keep(index, stage.fused)
    flat = index
    if batch > 1:
        flat = index + torch.arange(batch, device=index.device)[:, None] * scores.shape[1]
    kept = F.embedding(flat.reshape(-1), patches).reshape(batch, stage.k, -1)
    left = [tokens[:, :1], kept]
    if stage.fused:
        left.append(fuse_rest(patches, by_class, flat))
    bias = straight_through_bias(scores, index) if learns else None
    return torch.cat(left, 1).flatten(0, 1), F.pad(bias, (0, 1)) if stage.fused and bias is not None else bias


def choose_tokens(scores: Tensor, k: int, explore: bool) -> Tensor:
    """Indices [batch, k] of the k best scores [batch, n].

    Deployed: constant top-k. With `explore` the scores are Gumbel-perturbed first (Kool et al., Stochastic Beams and
    Where to Find Them, 2019), so that training also sees tokens that the scorer does not yet favour.
    """
    if explore:
        uniform = torch.rand_like(scores, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
        scores = scores - torch.log(-torch.log(uniform))
    return scores.topk(k, dim=1).indices


def fuse_rest(patches: Tensor, worth: Tensor, kept: Tensor) -> Tensor:
    """The patches [batch x n, dim] that are not `kept`, int64 [batch, k] rows of them, as one token: [batch, 1, dim].

    Inattentive token fusion of EViT (Liang et al., Not All Patches are What You Need, ICLR 2022), x_fused =
    sum of a_i x_i over the inattentive tokens i, where a_i, `worth` [batch, n], is the attention that CLS pays to each. It
    is taken as the sum over all less that over the kept ones, so that nothing has to be looked up but these.
    """
    batch, k = kept.shape
    weighted = patches * worth.reshape(-1, 1)
    own = F.embedding(kept.reshape(-1), weighted).reshape(batch, k, -1).sum(1, keepdim=True)
    return weighted.reshape(batch, -1, patches.shape[1]).sum(1, keepdim=True) - own


def straight_through_bias(scores: Tensor, index: Tensor) -> Tensor:
    """Zeros [batch, 1 + k] with the gradient of ln sigmoid(score) for each kept token.

    Added to attention logits it multiplies a token's attention by its gate, as DynamicViT's attention masking does
    (Rao et al., 2021, section 3.3); value 1 forward and the gate's gradient backward is the straight-through
    estimator (Bengio et al., 2013, section 4). Scaling the token itself would not do: LayerNorm takes scale away.
    """
    gate = F.logsigmoid(scores.gather(1, index).float())
    return F.pad(gate - gate.detach(), (1, 0))
