"""How times are taken and compared, on a clock that the tests turn."""

from __future__ import annotations

import numpy as np
import pytest

from athe_export.bench.protocol import (
    UNSPLIT,
    Lap,
    Plan,
    Query,
    Ratio,
    Series,
    lacking,
    measure,
    ratio,
    typical,
)


class Clock:
    """Time that passes only where a query takes some."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def query(self, seconds: float, ran: list[str] | None = None, name: str = "") -> Query:
        def run() -> Lap:
            self.now += seconds
            if ran is not None:
                ran.append(name)
            return UNSPLIT

        return run


def _measured(plan: Plan, **rows: float) -> dict[str, Series]:
    clock = Clock()
    run = measure({name: clock.query(s) for name, s in rows.items()}, plan, clock=clock, cpu_clock=clock)
    return {str(key): series for key, series in run.series.items()}


def test_every_row_has_its_turn_in_every_round_in_changing_order() -> None:
    clock, ran = Clock(), []
    rows = {name: clock.query(1.0, ran, name) for name in "abcd"}
    measure(rows, Plan(rounds=12, slice_s=0, warm_up=2), clock=clock, cpu_clock=clock)
    warm, timed = ran[:8], [tuple(ran[at : at + 4]) for at in range(8, len(ran), 4)]
    assert warm == ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert len(timed) == 12 and all(sorted(r) == ["a", "b", "c", "d"] for r in timed)
    assert len(set(timed)) > 6


def test_warm_up_and_the_first_query_of_a_slice_are_not_counted() -> None:
    clock, times = Clock(), iter([9.0, 0.1] + [5.0, 0.1, 0.1, 0.1, 0.1] * 3)

    def query() -> Lap:
        clock.now += next(times)
        return UNSPLIT

    series = measure({"row": query}, Plan(rounds=3, slice_s=0.35, warm_up=2), clock=clock, cpu_clock=clock).series["row"]
    assert series.seconds == pytest.approx([0.1] * 12)
    assert list(series.rounds) == [0] * 4 + [1] * 4 + [2] * 4


def test_rows_share_the_time_and_not_the_number_of_queries() -> None:
    found = _measured(Plan(rounds=10, slice_s=1.0), slow=0.5, fast=0.01)
    assert len(found["slow"].seconds) == 20 and len(found["fast"].seconds) == 1000


@pytest.mark.parametrize(
    ("plan", "queries", "seconds"),
    [
        (Plan(queries=50, rounds=1, slice_s=0), 50, 25.0),
        (Plan(row_seconds=60.0, rounds=1, slice_s=0), 120, 60.0),
        (Plan(seconds=33.0, rounds=1, slice_s=0), 66, 33.0),
        (Plan(rounds=7, slice_s=0), 7, 3.5),
    ],
)
def test_a_run_lasts_until_every_condition_of_the_plan_holds(plan: Plan, queries: int, seconds: float) -> None:
    series = _measured(plan, row=0.5)["row"]
    assert (len(series.seconds), series.seconds.sum()) == (queries, pytest.approx(seconds))


def test_progress_is_the_share_of_the_condition_that_is_furthest_behind() -> None:
    clock, told = Clock(), []
    measure(
        {"row": clock.query(1.0)},
        Plan(queries=4, rounds=1, slice_s=0),
        clock=clock,
        cpu_clock=clock,
        progress=told.append,
    )
    assert told == [0, 0.25, 0.5, 0.75, 1.0]


def test_time_that_something_else_had_the_cpu_is_seen() -> None:
    clock, cpu = Clock(), Clock()

    def query() -> Lap:
        clock.now += 1.0
        cpu.now += 0.75
        return UNSPLIT

    assert measure({"row": query}, Plan(slice_s=0), clock=clock, cpu_clock=cpu).busy == pytest.approx(0.75)


def _series(seconds: list[float], rounds: list[int], kinds: list[str] | None = None) -> Series:
    return Series(np.array(seconds), np.array(rounds), np.array(kinds or [""] * len(seconds)))


def test_percentiles_are_times_that_were_measured() -> None:
    series = _series([4.0, 1.0, 3.0, 2.0], [0, 0, 1, 1])
    assert [series.percentile(p) for p in (50, 90, 99)] == [3.0, 4.0, 4.0]


def test_one_disturbed_round_does_not_move_the_typical_time() -> None:
    seconds = [1.0] * 8 + [50.0] * 2
    assert typical(_series(seconds, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])) == 1.0


def test_a_mix_counts_each_kind_by_its_share_and_not_by_its_queries() -> None:
    series = _series([1.0, 1.0, 1.0, 3.0], [0, 1, 2, 2], ["simple", "simple", "simple", "complex"])
    assert typical(series, {"simple": 0.25, "complex": 0.75}) == pytest.approx(2.5)
    assert typical(series, {"simple": 1.0, "complex": 0.0}) == 1.0


def test_a_kind_that_no_query_was_of_is_named_and_not_guessed() -> None:
    series = _series([1.0], [0], ["simple"])
    assert lacking(series, {"simple": 0.5, "complex": 0.5}) == ("complex",)
    assert lacking(series, {"simple": 1.0, "complex": 0.0}) == lacking(series, None) == ()
    with pytest.raises(ValueError, match="complex"):
        typical(series, {"simple": 0.5, "complex": 0.5})


def test_a_ratio_of_steady_rows_is_exact_and_its_interval_a_point() -> None:
    found = _measured(Plan(rounds=20, slice_s=0), dense=0.5, simple=0.125)
    assert ratio(found["dense"], found["simple"]) == Ratio(4.0, 4.0, 4.0)


def test_what_slows_whole_rounds_widens_no_interval_of_a_ratio() -> None:
    pace = np.random.default_rng(0).uniform(1, 5, 40)
    rounds = list(range(40))
    found = ratio(_series(list(3 * pace), rounds), _series(list(pace), rounds))
    assert found.value == pytest.approx(3) and found.lower == pytest.approx(3) and found.upper == pytest.approx(3)


def test_an_interval_holds_the_ratio_and_narrows_with_rounds() -> None:
    def of(rounds: int) -> Ratio:
        generator = np.random.default_rng(1)
        slow, fast = (scale * generator.lognormal(0, 0.3, rounds) for scale in (2.0, 1.0))
        return ratio(_series(list(slow), list(range(rounds))), _series(list(fast), list(range(rounds))))

    few, many = of(20), of(2000)
    assert few.lower < few.value < few.upper and many.lower < 2 < many.upper
    assert many.upper - many.lower < 0.25 * (few.upper - few.lower)


def test_a_ratio_of_mixes_survives_rounds_without_one_of_the_kinds() -> None:
    kinds = ["simple", "complex", "simple", "simple", "complex"]
    mix = _series([1.0, 3.0, 1.0, 1.0, 3.0], [0, 1, 2, 3, 4], kinds)
    dense = _series([8.0] * 5, [0, 1, 2, 3, 4])
    assert ratio(dense, mix, None, {"simple": 0.5, "complex": 0.5}) == Ratio(4.0, 4.0, 4.0)


def test_parts_are_compared_as_wholes_are() -> None:
    clock = Clock()

    def query() -> Lap:
        clock.now += 3.0
        return Lap("simple", {"resize": 1.0, "branch": 2.0})

    series = measure({"row": query}, Plan(slice_s=0), clock=clock, cpu_clock=clock).series["row"]
    assert typical(series.of_part("branch")) == 2.0
    assert typical(series.of_part("resize", "branch"), {"simple": 1.0}) == 3.0
    assert typical(series.of_part("router")) == 0.0
