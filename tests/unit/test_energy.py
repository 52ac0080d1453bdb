"""Joules an image from simulated logs: a device and a meter of known physics, so that estimate and interval can be held
against the truth."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from athe_export.bench.alignment import Alignment, LogTooShort, align
from athe_export.bench.energy import RowEnergy, block_powers, energy_json, row_energies
from athe_export.bench.join import joined, patiently
from athe_export.bench.load_pattern import BARKER, Timeline, timeline_from
from athe_export.bench.power_log import PowerLog, read_power_log
from athe_export.bench.run import BenchReport
from athe_export.bench.student import mean_margin
from athe_export.errors import PowerLogError, UsageError
from tests.power_example import COMPLEX, PLAN, SIMPLE, Device, Meter, Values, run, samples, write_log

DEVICE, METER = Device(), Meter()


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return run(DEVICE)


def logged(folder: Path, timeline: Timeline, meter: Meter = METER, device: Device = DEVICE) -> PowerLog:
    return read_power_log(write_log(folder / "meter.csv", *samples(device, meter, timeline)))


def as_log(times: Values, watts: Values) -> PowerLog:
    return PowerLog(Path("meter.csv"), "columns", times, watts, 1e-4, (), ())


def found(log: PowerLog, timeline: Timeline, alignment: Alignment | None = None) -> dict[Any, RowEnergy]:
    powers = block_powers(log, timeline, alignment or align(log, timeline))
    return {row.row: row for row in row_energies(timeline, powers, log.resolution_w)}


# --- the pattern ------------------------------------------------------------------------------------------------------


def test_the_pattern_is_code_blocks_code_with_idle_between_and_every_row_once_a_round(timeline: Timeline) -> None:
    loads = timeline.loads
    assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(loads))
    assert len(timeline.code) == 2 * sum(BARKER)
    rows = [b.row for b in timeline.blocks]
    assert [sorted(rows[i : i + 2]) for i in range(0, len(rows), 2)] == [[0, 1]] * PLAN.rounds
    for block in timeline.blocks:
        assert block.counted_from - block.start >= PLAN.settle_s and block.end - block.counted_to >= PLAN.settle_s
        assert block.counted_to - block.counted_from >= PLAN.load_s and block.images > 10
    gaps = [b[0] - a[1] for a, b in itertools.pairwise(loads) if b[0] - a[1] > 2.5 * PLAN.chip_s]
    assert len(gaps) >= len(timeline.blocks) and min(gaps) >= 2 * PLAN.settle_s + PLAN.idle_s and np.ptp(gaps) > 0.5
    assert timeline.seconds < 1.2 * PLAN.seconds(2)


def test_two_runs_have_patterns_of_their_own(timeline: Timeline) -> None:
    other = run(Device(), seed=1)
    assert [b.start for b in other.blocks] != [b.start for b in timeline.blocks]


def test_a_timeline_survives_json_and_anything_else_is_refused(timeline: Timeline) -> None:
    content = json.loads(json.dumps(timeline.to_json()))
    assert timeline_from(content, "x").to_json() == content
    for broken in (None, {}, {**content, "blocks": []}, {**content, "code": []}, {**content, "plan": {"chip_s": 1}}):
        with pytest.raises(UsageError):
            timeline_from(broken, "x")


# --- alignment --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "meter",
    [
        Meter(),
        Meter(hertz=100, noise_w=0.15, offset_s=1.7e9),
        Meter(hertz=2.5, averages=True),
        Meter(rate=0.0015, jitter_s=0.04),
        Meter(rate=-0.0015, lead_s=300, tail_s=1),
        Meter(digits=1),
    ],
    ids=str,
)
def test_the_run_is_found_in_the_log_whatever_its_clock_counts_from(
    meter: Meter, timeline: Timeline, tmp_path: Path
) -> None:
    device = Device(drift_w=0.1)
    log = logged(tmp_path, timeline, meter, device)
    alignment = align(log, timeline)
    lag = 0.5 / meter.hertz if meter.averages else 0.5 * meter.jitter_s
    assert alignment.offset_s == pytest.approx(meter.offset_s + lag, abs=0.1)
    assert alignment.rate == pytest.approx(meter.rate, abs=3e-4)
    assert alignment.correlation > 0.8 and alignment.misfit_s < 0.1
    for row, energy in found(log, timeline, alignment).items():
        margin = 2 * (energy.upper - energy.joules)  # twice the interval: six meters may not fail by chance
        assert energy.joules == pytest.approx(device.joules[row], abs=margin) and margin < 0.3 * energy.joules


def refusal(log: PowerLog, timeline: Timeline) -> PowerLogError:
    with pytest.raises(PowerLogError) as caught:
        energy_json(log, timeline, align(log, timeline))
    assert caught.value.remedy and caught.value.where
    return caught.value


def test_a_log_that_begins_too_late_or_ends_too_early_does_not_cover_the_run(timeline: Timeline, tmp_path: Path) -> None:
    times, watts = samples(Device(), Meter(), timeline)
    late = refusal(as_log(times[600:], watts[600:]), timeline)  # 60 s, of which 20 were before the run and 5.5 or so idle
    assert "does not cover the run: it begins 3" in late.what and not isinstance(late, LogTooShort)
    early = refusal(as_log(times[:-700], watts[:-700]), timeline)
    assert "does not cover the run: it ends 4" in early.what and isinstance(early, LogTooShort)


def test_a_log_that_has_only_begun_may_become_whole(timeline: Timeline) -> None:
    times, watts = samples(Device(), Meter(), timeline)
    for count in (2, 50):
        early = refusal(as_log(times[:count], watts[:count]), timeline)
        assert isinstance(early, LogTooShort) and "does not cover the run: it is" in early.what


def test_a_log_with_too_few_samples_is_too_coarse(timeline: Timeline, tmp_path: Path) -> None:
    said = refusal(logged(tmp_path, timeline, meter=Meter(hertz=1)), timeline).what
    assert "too coarse: a sample every 1.00 s" in said and "every 0.5 s" in said
    slow = dataclasses.replace(PLAN, chip_s=3.0, settle_s=2.0, load_s=12.0, idle_s=8.0)
    log = logged(tmp_path, slower := run(Device(), slow), meter=Meter(hertz=1))
    assert found(log, slower)[SIMPLE].joules == pytest.approx(Device().joules[SIMPLE], rel=0.05)


def test_a_clock_that_drifts_is_refused_with_how_much(timeline: Timeline, tmp_path: Path) -> None:
    said = refusal(logged(tmp_path, timeline, meter=Meter(rate=0.01)), timeline).what
    assert re.search(r"drifts against this machine's: 1\.0\d% fast", said)
    times, watts = samples(Device(), Meter(), timeline)
    times[len(times) // 2 :] += 1.5  # a host that slept
    assert "drift" in (said := refusal(as_log(times, watts), timeline).what) or "loses the run" in said


def test_a_gap_in_the_log_is_refused_with_its_place(timeline: Timeline) -> None:
    times, watts = samples(Device(), Meter(), timeline)
    block = timeline.blocks[4]
    gap = (times > 1234.5 + block.counted_from - 0.2) & (times < 1234.5 + block.counted_to + 0.2)
    said = refusal(as_log(times[~gap], watts[~gap]), timeline).what
    assert "gap" in said and f"from second {block.counted_from:.1f}" in said


def test_a_log_of_something_else_is_refused(timeline: Timeline) -> None:
    times, _watts = samples(Device(), Meter(), timeline)
    noise = 2.7 + 0.3 * np.random.default_rng(0).standard_normal(len(times))
    flat = np.full(len(times), 2.7)
    other = samples(Device(), Meter(), run(Device(), seed=7))[1]
    for wrong in (noise, flat, np.resize(other, len(times))):
        refusal(as_log(times, wrong), timeline)


def test_a_pattern_that_is_there_twice_is_refused(timeline: Timeline) -> None:
    times, watts = samples(Device(), Meter(), timeline)
    twice = np.concatenate([times, times + (times[-1] - times[0]) + 0.1])
    assert "more than one place" in refusal(as_log(twice, np.concatenate([watts, watts])), timeline).what


def test_idle_that_drifts_too_much_is_refused(timeline: Timeline) -> None:
    times, watts = samples(Device(drift_w=0.7), Meter(), timeline)
    assert "idle power drifts" in refusal(as_log(times, watts), timeline).what


# --- energy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meter", [Meter(hertz=4, noise_w=0.05), Meter(hertz=50, noise_w=0.3)], ids=str)
def test_95_of_100_intervals_hold_the_true_joules(meter: Meter) -> None:
    device, runs = Device(drift_w=0.1), 150
    truth, inside, off = device.joules, [], []
    for seed in range(runs):
        timeline = run(device, seed=seed)
        log = as_log(*samples(device, meter, timeline, seed))
        for row, energy in found(log, timeline, Alignment(meter.offset_s, meter.rate, 1.0, 0.0)).items():
            inside.append(energy.lower <= truth[row] <= energy.upper)
            off.append(energy.joules / truth[row] - 1)
    low, high = stats.binom.interval(0.999, len(inside), 0.95)
    assert low <= sum(inside) <= high
    assert abs(np.mean(off)) < 4 * np.std(off) / np.sqrt(len(off)) + 5e-4


def test_a_meter_of_few_digits_widens_the_interval_so_that_it_holds_the_truth() -> None:
    device = Device(idle_w=2.73, rows=((SIMPLE, 0.031, 0.84), (COMPLEX, 0.083, 1.11)))
    timeline = run(device)
    fine, coarse = (
        found(dataclasses.replace(as_log(*samples(device, meter, timeline)), resolution_w=step), timeline,
              Alignment(meter.offset_s, 0.0, 1.0, 0.0))
        for meter, step in ((Meter(noise_w=1e-3), 1e-4), (Meter(noise_w=1e-3, digits=1), 0.1))
    )  # fmt: skip
    for row, truth in device.joules.items():
        assert coarse[row].upper - coarse[row].lower > 3 * (fine[row].upper - fine[row].lower)
        assert coarse[row].lower <= truth <= coarse[row].upper


@pytest.mark.parametrize("count", [2, 3, 5, 8, 11, 20])
def test_a_mean_has_scipys_interval_and_of_many_values_a_wider_one(count: int) -> None:
    values = np.random.RandomState(1).normal(3, 2, count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    own = mean_margin(list(values))
    assert own == pytest.approx((high - low) / 2, rel=1e-6) if count <= 11 else own > (high - low) / 2


def test_a_single_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="2 values"):
        mean_margin([1.0])


# --- joining ----------------------------------------------------------------------------------------------------------


def report(timeline: Timeline) -> BenchReport:
    return BenchReport({"rows": [], "energy": {"refused": "not joined", "timeline": timeline.to_json()}})


def test_a_joined_report_has_joules_the_log_and_the_timeline(timeline: Timeline, tmp_path: Path) -> None:
    path = logged(tmp_path, timeline).path
    energy = json.loads(json.dumps(joined(report(timeline), path, None).document["energy"]))
    assert energy["refused"] is None and energy["timeline"] == timeline.to_json()
    assert energy["log"]["format"] == "tc66c" and energy["log"]["interval_s"] == pytest.approx(0.1, rel=0.01)
    assert energy["idle_w"]["lowest"] < energy["idle_w"]["value"] < energy["idle_w"]["highest"]
    rows = {r["system"]: r for r in energy["rows"]}
    assert set(rows) == {"simple", "complex"} and all(r["rounds"] == PLAN.rounds for r in rows.values())
    assert rows["complex"]["watts_above_idle"] == pytest.approx(1.1, abs=0.02)
    assert rows["simple"]["joules"]["value"] == pytest.approx(0.031 * 0.8, rel=0.02)


def test_a_refusal_stands_in_the_report_beside_the_timeline(timeline: Timeline, tmp_path: Path) -> None:
    with pytest.raises(PowerLogError) as caught:
        joined(report(timeline), tmp_path / "no.csv", None)
    energy = caught.value.report["energy"]
    assert energy["refused"] == "there is no such log" and energy["timeline"] == timeline.to_json()


def test_a_log_that_is_still_being_written_is_waited_for_and_one_that_is_not_is_refused(
    timeline: Timeline, tmp_path: Path
) -> None:
    whole = logged(tmp_path, timeline).path.read_text().splitlines(keepends=True)
    path, now, written = tmp_path / "growing.csv", 0.0, len(whole) - 400
    path.write_text("".join(whole[:written]))

    def sleep(seconds: float) -> None:
        nonlocal now, written
        now, written = now + seconds, written + 100
        path.write_text("".join(whole[:written]))

    grown = patiently(lambda: joined(report(timeline), path, None), path, clock=lambda: now, sleep=sleep)
    assert grown.document["energy"]["rows"] and 1 <= now <= 10

    def nothing_more(seconds: float) -> None:
        nonlocal now
        now += seconds

    path.write_text("".join(whole[:-400]))
    now = 0.0
    with pytest.raises(LogTooShort):
        patiently(lambda: joined(report(timeline), path, None), path, clock=lambda: now, sleep=nothing_more)
    assert 10 < now < 15
