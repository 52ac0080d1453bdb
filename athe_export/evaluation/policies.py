"""Ways to choose a branch, judged from what every branch answered: the system's own router, and those it is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from athe_export.evaluation.answers import Answers
from athe_export.runtime.routing import difficulty_target

LEARNED, SINGLE, ORACLE, RANDOM, ALWAYS = "learned", "single branch", "oracle", "random", "always"
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """A way to choose a branch.

    Attributes:
        name: learned, single branch, oracle, random, or `always BRANCH`.
        shares: of the images, by branch.
        router: whether an image passes the router first, and its time and operations count.
        chance: of each image to go to each branch, float64 [n, branches]; None where answers mean nothing.
    """

    name: str
    shares: Mapping[str, float]
    router: bool
    chance: Shares | None = None

    @property
    def deployed(self) -> bool:
        """Whether the bundle does this by itself."""
        return self.name in (LEARNED, SINGLE)

    def right(self, answers: Answers) -> Shares:
        """Each image's chance to be answered rightly, float64 [n]: 0 or 1 but where chance decides."""
        assert self.chance is not None
        found: Shares = (self.chance * answers.correct()).sum(1)
        return found


def policies(branches: Sequence[str], answers: Answers) -> list[Policy]:
    """All policies of a trained system, its own first; of a single branch there is no other.

    - oracle: the easiest branch that is right; where none is, the easiest. No router can be right more often.
    - random: each image by chance, with the learned router's shares; its expectation is taken, no draw.
    - always: one branch, without a router.
    """
    images, count = len(answers.ids), len(branches)
    if count == 1:
        return [_of(SINGLE, branches, np.ones((images, 1)), router=False)]
    learned = np.eye(count)[answers.routed()]
    easiest = np.rint(difficulty_target(answers.correct()) * (count - 1)).astype(np.int64)
    found = [
        _of(LEARNED, branches, learned, router=True),
        _of(ORACLE, branches, np.eye(count)[easiest], router=True),
        _of(RANDOM, branches, np.tile(learned.mean(0), (images, 1)), router=True),
    ]
    return found + [
        _of(f"{ALWAYS} {name}", branches, np.tile(np.eye(count)[at], (images, 1)), router=False)
        for at, name in enumerate(branches)
    ]


def untrained_policies(branches: Sequence[str], shares: Mapping[str, float]) -> list[Policy]:
    """What can be said of untrained weights: time and size of the whole at the shares given, and of each branch."""
    if len(branches) == 1:
        return [Policy(SINGLE, {branches[0]: 1.0}, router=False)]
    return [
        Policy(LEARNED, dict(shares), router=True),
        *(Policy(f"{ALWAYS} {name}", {name: 1.0}, router=False) for name in branches),
    ]


def _of(name: str, branches: Sequence[str], chance: Shares, router: bool) -> Policy:
    shares = {branch: float(share) for branch, share in zip(branches, chance.mean(0), strict=True)}
    if not router:  # it needs no other graph
        shares = {branch: share for branch, share in shares.items() if share}
    return Policy(name, shares, router, chance)
