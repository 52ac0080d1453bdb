"""The paper's balanced subset: as many simple images as complex ones, told apart by a model that no router is part of.

An image is the harder the less probable the dense fp32 model finds its true class; of two with equal probability the one
with the higher id is the harder. The easier half of the images is simple, the harder half complex, and as many are drawn
from each. Since the halves are equal, top-1 on the subset estimates top-1 on all images for every system, whoever judges;
only what is said of one half leans to the judge, see docs/evaluate.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from athe_export.parity.reference import Reference

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BalancedSubset:
    """Image ids of both halves, int64 [n] each, ascending; each image's probability of its class according to the judge.

    Attributes:
        judge: name of the bundle whose dense fp32 reference judged.
        pool: how many images were judged and halved.
    """

    simple: Ids
    complex: Ids
    probability: dict[int, float]
    judge: str
    pool: int

    @property
    def ids(self) -> Ids:
        return np.concatenate([self.simple, self.complex])


def balanced_subset(reference: Reference, ids: Ids, each: int, seed: int, judge: str) -> BalancedSubset:
    """Draws `each` images from both halves of those of `ids` that the reference has answered; fewer where there are fewer.

    Args:
        reference: of a dense model; its one branch judges.
    """
    among = np.isin(reference.ids, ids)
    pool, sure = reference.ids[among], true_class_probability(reference)[among]
    order = np.lexsort((pool, -sure))  # the easiest first
    half = len(order) // 2
    generator, size = np.random.default_rng(seed), min(each, half)
    easy = np.sort(generator.choice(pool[order[:half]], size, replace=False))
    hard = np.sort(generator.choice(pool[order[len(order) - half :]], size, replace=False))
    probability = dict(zip(pool.tolist(), sure.tolist(), strict=True))
    return BalancedSubset(easy, hard, {i: probability[i] for i in [*easy.tolist(), *hard.tolist()]}, judge, len(pool))


def true_class_probability(reference: Reference) -> npt.NDArray[np.float64]:
    """Softmax probability of each image's label, of the reference's first branch, float64 [n]."""
    logits = reference.logits[0].astype(np.float64)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    sure: npt.NDArray[np.float64] = shifted[np.arange(len(shifted)), reference.labels] / shifted.sum(-1)
    return sure


def ids_sha256(ids: Ids) -> str:
    """Digest of image ids in their order."""
    return hashlib.sha256(",".join(map(str, ids.tolist())).encode()).hexdigest()
