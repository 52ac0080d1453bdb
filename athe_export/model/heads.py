"""Head importance by attention entropy.

For a head, H = mean over images and query tokens of -sum_j p_j ln p_j, where p is that query's attention over the
tokens; importance = 1 - H / ln(tokens), so that 1 is a head that always looks at one token and 0 one that averages
them all. *Basic* heads are the most important ones. Entropy as a head's confidence: Voita et al., Analyzing
Multi-Head Self-Attention, ACL 2019, section 4 (the confident heads are the ones that matter), and Choi et al., Entropy
Meets Importance, arXiv 2510.13832v2, section 4.2.2 (entropy of a head's attention rows, averaged).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from athe_export.model.deit import DeiT, HeadRank


@torch.no_grad()
def head_importance(backbone: DeiT, batches: Iterable[Tensor]) -> Tensor:
    """Importance of every head of the dense backbone, float64 [depth, heads].

    Args:
        backbone: in evaluation mode.
        batches: normalised images, float32 [batch, 3, size, size].
    """
    total = torch.zeros(backbone.spec.depth, backbone.spec.heads, dtype=torch.float64)
    images = 0
    for image in batches:
        x, batch = backbone.embed(image), image.shape[0]
        tokens = x.shape[0] // batch
        for index, block in enumerate(backbone.blocks):
            x, attended = block(x, batch)
            entropy = torch.special.entr(attended.probabilities.double()).sum(-1).mean(2)
            total[index] += (1 - entropy / math.log(tokens)).sum(0).cpu()
        images += batch
    if not images:
        raise ValueError("head importance needs at least one image")
    return total / images


def rank_heads(importance: Tensor) -> HeadRank:
    """Head indices of each block, most important first; ties by index."""
    order = importance.argsort(dim=1, descending=True, stable=True)
    return tuple(tuple(int(h) for h in row) for row in order)
