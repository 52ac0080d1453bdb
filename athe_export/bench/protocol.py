"""How times are taken: all rows in turn in every round, in random order, each for a slice of time. numpy alone.

After the single-stream scenario of MLPerf Inference (Reddi et al., 2020): batch 1, a query is sent when the last one has
been answered, and at least 1,024 queries and 60 seconds make a result. Rows that are to be compared share one run, because
what else a machine does meets them alike only then.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from athe_export.preprocessing import GraphInput

Clock = Callable[[], float]
Seconds = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)
_BURST = 2000  # queries of a slice at most
_RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)  # percentiles of the resampled ratios


class Lap(NamedTuple):
    """What a query says of itself: the kind of image it was (the branch that it took), and seconds by part."""

    kind: str
    parts: Mapping[str, float]


UNSPLIT = Lap("", {})
Query = Callable[[], Lap]


class Runs(Protocol):
    """A graph in an engine."""

    def run(self, image: GraphInput) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class Plan:
    """How long is measured: until every one of these holds.

    Attributes:
        seconds: of the whole run.
        queries: of every row, without warm-up.
        row_seconds: of every row, without warm-up.
        rounds: in which every row had its turn.
        slice_s: seconds that a row has in a round; at least one query.
        warm_up: queries of every row before the first round.
    """

    seconds: float = 0.0
    queries: int = 1
    row_seconds: float = 0.0
    rounds: int = 5
    slice_s: float = 0.02
    warm_up: int = 3


QUICK = Plan(seconds=11.0)  # with cold starts and opening graphs about 15 s
FULL = Plan(queries=1024, row_seconds=60.0, rounds=30, slice_s=0.1)


@dataclass(frozen=True)
class Series:
    """A row's queries in the order they were sent: seconds, the round and the kind of each, and seconds by part, all [n]."""

    seconds: Seconds
    rounds: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.str_]
    parts: Mapping[str, Seconds] = field(default_factory=dict)

    def percentile(self, percent: float) -> float:
        """Seconds that so many per cent of the queries do not exceed; one that was measured, not a mean of two."""
        return float(np.percentile(self.seconds, percent, method="higher"))

    def of_part(self, *names: str) -> Series:
        """The same queries with the time of these parts together in place of the whole."""
        found = [self.parts[name] for name in names if name in self.parts]
        return Series(np.sum(found, axis=0) if found else np.zeros_like(self.seconds), self.rounds, self.kinds)


@dataclass(frozen=True)
class Run:
    """What was measured, by row.

    `busy` is the CPU time of this process over wall time while queries ran: below 1 with one thread, something else had the
    CPU.
    """

    series: Mapping[Hashable, Series]
    busy: float


@dataclass(frozen=True)
class Ratio:
    """Times as fast, with its 95% interval."""

    value: float
    lower: float
    upper: float


def measure(
    rows: Mapping[K, Query],
    plan: Plan,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
    progress: Callable[[float], None] = lambda share: None,
) -> Run:
    """Times every row until the plan is met.

    In a round each row has one slice, in random order. Slices of more than one query begin with one that is not counted: it
    finds the caches as another row has left them.

    Args:
        rows: what a row does for one query.
        progress: told the share of the plan that is done.
    """
    generator = np.random.default_rng(seed)
    bursts = {key: _burst(query, plan, clock) for key, query in rows.items()}
    taken: dict[K, list[Series]] = {key: [] for key in rows}
    start, number, wall, cpu = clock(), 0, 0.0, 0.0
    while (done := _done(plan, number, clock() - start, taken)) < 1:
        progress(done)
        for at in generator.permutation(len(rows)):
            key = list(rows)[at]
            before, cpu_before = clock(), cpu_clock()
            found = _slice(rows[key], bursts[key], clock)
            wall, cpu = wall + clock() - before, cpu + cpu_clock() - cpu_before
            taken[key].append(_series(found, number))  # as arrays: a long run has millions of queries
        number += 1
    progress(1.0)
    return Run({key: _joined(found) for key, found in taken.items()}, cpu / wall if wall else 1.0)


def of_session(session: Runs, image: GraphInput) -> Query:
    """A row that is one graph on one input, nothing else."""

    def query() -> Lap:
        session.run(image)
        return UNSPLIT

    return query


def _burst(query: Query, plan: Plan, clock: Clock) -> int:
    """How many queries make a slice, from the quickest of the warm-up."""
    quickest = float("inf")
    for _ in range(max(1, plan.warm_up)):
        start = clock()
        query()
        quickest = min(quickest, clock() - start)
    return int(np.clip(np.ceil(plan.slice_s / max(quickest, 1e-9)), 1, _BURST))


def _slice(query: Query, queries: int, clock: Clock) -> list[tuple[float, Lap]]:
    if queries > 1:
        query()
    found = []
    for _ in range(queries):
        start = clock()
        lap = query()
        found.append((clock() - start, lap))
    return found


def _done(plan: Plan, rounds: int, seconds: float, taken: Mapping[K, list[Series]]) -> float:
    """The share of the plan that is done; 1 where every one of its conditions holds."""
    shares = [rounds / plan.rounds if plan.rounds else 1.0, seconds / plan.seconds if plan.seconds else 1.0]
    for found in taken.values():
        if plan.queries:
            shares.append(sum(len(part.seconds) for part in found) / plan.queries)
        if plan.row_seconds:
            shares.append(sum(float(part.seconds.sum()) for part in found) / plan.row_seconds)
    return min(1.0, *shares)


def _series(found: list[tuple[float, Lap]], number: int) -> Series:
    """A slice of round `number`; all its queries have the same parts."""
    return Series(
        np.array([seconds for seconds, _ in found]),
        np.full(len(found), number, np.int64),
        np.array([lap.kind for _, lap in found], np.str_),
        {name: np.array([lap.parts[name] for _, lap in found]) for name in found[0][1].parts},
    )


def _joined(slices: list[Series]) -> Series:
    return Series(
        np.concatenate([s.seconds for s in slices]),
        np.concatenate([s.rounds for s in slices]),
        np.concatenate([s.kinds for s in slices]),
        {name: np.concatenate([s.parts[name] for s in slices]) for name in slices[0].parts},
    )


def typical(series: Series, shares: Mapping[str, float] | None = None) -> float:
    """Seconds of an image: the median over rounds of each round's median.

    Args:
        shares: by kind, where queries are of several kinds that take different times: the median of each kind, weighted.
            A median of all of them together would be that of the most frequent kind alone.
    """
    medians = _round_medians(series, shares)
    return float(sum(weight * np.nanmedian(found) for weight, found in medians))


def ratio(
    slow: Series,
    fast: Series,
    slow_shares: Mapping[str, float] | None = None,
    fast_shares: Mapping[str, float] | None = None,
) -> Ratio:
    """How many times as fast `fast` is as `slow`, both of one run.

    The interval is a percentile bootstrap over rounds (Efron and Tibshirani, 1993, section 13.3): queries of one round
    share what the machine did meanwhile, so that whole rounds are drawn, for both rows the same.
    """
    sides = (_round_medians(slow, slow_shares), _round_medians(fast, fast_shares))
    count = max(len(found) for side in sides for _, found in side)
    draws = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without one of the kinds is left out below
        drawn = [sum(w * np.nanmedian(_padded(found, count)[draws], axis=1) for w, found in side) for side in sides]
    ratios = np.asarray(drawn[0]) / np.asarray(drawn[1])
    lower, upper = np.percentile(ratios[np.isfinite(ratios)], _INTERVAL)
    return Ratio(typical(slow, slow_shares) / typical(fast, fast_shares), float(lower), float(upper))


def lacking(series: Series, shares: Mapping[str, float] | None) -> tuple[str, ...]:
    """Kinds that have a share and of which no query was."""
    return tuple(kind for kind, share in (shares or {}).items() if share and kind not in series.kinds)


def _round_medians(series: Series, shares: Mapping[str, float] | None) -> list[tuple[float, Seconds]]:
    """(weight, medians by round) of each kind that counts; NaN in a round without it.

    Raises:
        ValueError: there is no query of a kind that has a share.
    """
    if shares is None:
        return [(1.0, _medians(series.seconds, series.rounds))]
    found = []
    for kind, share in shares.items():
        own = series.kinds == kind
        if share and not own.any():
            raise ValueError(f"no query was of kind {kind!r}")
        if share:
            found.append((share, _medians(series.seconds[own], series.rounds[own])))
    return found


def _medians(seconds: Seconds, rounds: npt.NDArray[np.int64]) -> Seconds:
    order = np.argsort(rounds, kind="stable")
    numbers, starts = np.unique(rounds[order], return_index=True)
    medians = np.full(int(numbers[-1]) + 1, np.nan)
    medians[numbers] = [float(np.median(part)) for part in np.split(seconds[order], starts[1:])]
    return medians


def _padded(values: Seconds, count: int) -> Seconds:
    return np.concatenate([values, np.full(count - len(values), np.nan)])
