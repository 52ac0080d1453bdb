"""How much slower a graph is than another, measured: FLOPs and op counts do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from athe_export.bench.protocol import Plan, measure, of_session
from athe_export.preprocessing import GraphInput
from athe_export.runtime.engines import Session

_ROUNDS = 40
_WARM_UP = 3


@dataclass(frozen=True)
class Pair:
    """A graph, what it is held against, an image as its graphs take them and the share of images that they get."""

    candidate: Session
    base: Session
    image: GraphInput
    share: float


def slowdown(pairs: Sequence[Pair], rounds: int = _ROUNDS) -> float:
    """Time of an image through the candidates over that through the bases, medians weighted by share.

    All graphs take turns in one run, so that what else the machine does meets them alike. Exactly 1 where every candidate is
    its own base.
    """
    if all(pair.candidate is pair.base for pair in pairs):
        return 1.0
    graphs = {id(session): of_session(session, p.image) for p in pairs for session in (p.candidate, p.base)}
    run = measure(graphs, Plan(rounds=rounds, slice_s=0, warm_up=_WARM_UP))
    medians = {key: run.series[key].percentile(50) for key in graphs}
    candidates, bases = (
        sum(pair.share * medians[id(getattr(pair, side))] for pair in pairs) for side in ("candidate", "base")
    )
    return candidates / bases if bases else 1.0
