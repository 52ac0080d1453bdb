"""A device and a power meter as a physical model: what the meter's log would be of a run whose joules are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from athe_export.bench.load_pattern import PowerPlan, RowName, Timeline, run_pattern
from athe_export.bench.protocol import UNSPLIT, Lap, Query

PLAN = PowerPlan(chip_s=1.0, settle_s=0.5, load_s=4.0, idle_s=3.0, rounds=5)
SIMPLE: RowName = ("simple", "branch", "litert", "int8")
COMPLEX: RowName = ("complex", "branch", "litert", "int8")
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Device:
    """Watts at idle and, by row, seconds of an image and the watts that it adds."""

    idle_w: float = 2.7
    rows: tuple[tuple[RowName, float, float], ...] = ((SIMPLE, 0.031, 0.8), (COMPLEX, 0.083, 1.1))
    drift_w: float = 0.0  # of idle, from the run's begin to its end

    @property
    def joules(self) -> dict[RowName, float]:
        return {row: seconds * watts for row, seconds, watts in self.rows}


@dataclass(frozen=True)
class Meter:
    """Samples a second, their noise, the digits of what is shown, and a clock of its own.

    Attributes:
        averages: each sample is the mean since the last one, else the power at that moment.
        lead_s, tail_s: logged before and behind the run.
    """

    hertz: float = 10.0
    noise_w: float = 0.02
    digits: int = 4
    offset_s: float = 1234.5
    rate: float = 0.0
    averages: bool = False
    jitter_s: float = 0.0
    lead_s: float = 20.0
    tail_s: float = 20.0


def run(device: Device, plan: PowerPlan = PLAN, seed: int = 0) -> Timeline:
    """The pattern, on a clock that passes where an image or a pause takes time."""
    now = 0.0
    random = np.random.default_rng(seed)

    def query(seconds: float) -> Query:
        def classify() -> Lap:
            nonlocal now
            now += seconds * (1 + 0.02 * random.standard_normal())
            return UNSPLIT

        return classify

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    queries = {row: query(seconds) for row, seconds, _ in device.rows}
    return run_pattern(queries, plan, seed=seed, clock=lambda: now, sleep=sleep)


def power_of(device: Device, timeline: Timeline) -> Callable[[Values], Values]:
    """Watts at times of the run; before and after it, the device is at rest."""
    watts = {row: added for row, _, added in device.rows}

    def power(times: Values) -> Values:
        found = device.idle_w + device.drift_w * times / timeline.seconds
        for start, end in timeline.code:
            found = found + np.where((times >= start) & (times < end), watts[timeline.rows[0]], 0.0)
        for block in timeline.blocks:
            found = found + np.where((times >= block.start) & (times < block.end), watts[timeline.rows[block.row]], 0.0)
        return found

    return power


def samples(device: Device, meter: Meter, timeline: Timeline, seed: int = 0) -> tuple[Values, Values]:
    """(times of the meter's clock, watts) as it shows them."""
    random, step = np.random.default_rng(seed), 1 / meter.hertz
    run_times = np.arange(-meter.lead_s, timeline.seconds + meter.tail_s, step) + step * random.random()
    power = power_of(device, timeline)
    if meter.averages:
        within = (np.arange(32) + 0.5) / 32 * step
        watts = power(run_times[:, None] - within[None, :]).mean(axis=1)
    else:
        watts = power(run_times)
    watts = np.round(watts + meter.noise_w * random.standard_normal(len(watts)), meter.digits)
    jitter = meter.jitter_s * random.random(len(watts))
    return meter.offset_s + (1 + meter.rate) * run_times + jitter, watts


def write_log(path: Path, times: Values, watts: Values) -> Path:
    """As a meter's program would write it, at 5 V."""
    lines = ["Time[S],Volt[V],Current[A],Power[W]"]
    lines += [f"{t:.3f},5.0000,{w / 5:.6f},{w:.4f}" for t, w in zip(times, watts, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path
