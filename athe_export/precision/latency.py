"""How much slower a graph is than another, measured: FLOPs and op counts do not tell."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from athe_export.preprocessing import Tensor
from athe_export.runtime.predictor import Session

_ROUNDS = 40
_WARM_UP = 3


@dataclass(frozen=True)
class Pair:
    """A graph, what it is held against, an image float32 [1, 3, size, size] and the share of images that they get."""

    candidate: Session
    base: Session
    image: Tensor
    share: float


def slowdown(pairs: Sequence[Pair], rounds: int = _ROUNDS) -> float:
    """Time of an image through the candidates over that through the bases, medians weighted by share.

    All graphs take turns in one run, each pair in alternating order, so that what else the machine does meets them alike.
    Exactly 1 where every candidate is its own base.
    """
    if all(pair.candidate is pair.base for pair in pairs):
        return 1.0
    times: dict[int, list[float]] = {}
    for turn in range(-_WARM_UP, rounds):
        for pair in pairs:
            both = (pair.candidate, pair.base) if turn % 2 else (pair.base, pair.candidate)
            for session in both if pair.candidate is not pair.base else both[:1]:
                start = time.perf_counter()
                session.run(pair.image)
                if turn >= 0:
                    times.setdefault(id(session), []).append(time.perf_counter() - start)
    medians = {key: statistics.median(found) for key, found in times.items()}
    candidates, bases = (
        sum(pair.share * medians[id(getattr(pair, side))] for pair in pairs) for side in ("candidate", "base")
    )
    return candidates / bases if bases else 1.0
