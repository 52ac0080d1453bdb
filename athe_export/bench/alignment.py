"""Where a run lies in a power meter's log: the pattern of load is found there by cross-correlation, and then held against
the log part by part.

Neither the log's clock nor its zero is trusted. The correlation is normalised over what overlaps (Lewis, Fast normalized
cross-correlation, 1995), for a run of which the log shows a part alone; of all shifts and rates of the log's
clock, the one with the largest likelihood gain of "this load" over "any constant" is taken.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from athe_export.bench.load_pattern import Timeline
from athe_export.bench.power_log import PowerLog, Values
from athe_export.errors import PowerLogError

_STEPS_A_CHIP = 8
_SAMPLES_A_CHIP = 50  # of a log that has more: they are averaged
_RATES = 0.02  # of a clock that is looked for: up to so much fast or slow
_MAX_RATE = 0.002  # and that is put up with
_LEAST_OVERLAP = 0.3  # of the run
_LEAST_CORRELATION = 0.5
_RIVAL = 0.8  # of the best place's likelihood gain, which another place must not reach
_PARTS = 8


@dataclass(frozen=True)
class Alignment:
    """How the log's clock follows the run's: log = offset_s + (1 + rate) * run.

    Attributes:
        correlation: of load and power over the run.
        misfit_s: the largest distance of a part of the run from that line.
    """

    offset_s: float
    rate: float
    correlation: float
    misfit_s: float

    def run_times(self, times: Values) -> Values:
        """Times of the log, in the run's clock."""
        return np.asarray((times - self.offset_s) / (1 + self.rate))


class LogTooShort(PowerLogError):
    """The log does not reach to the run's end: its program may not have written all of it yet."""


def align(log: PowerLog, timeline: Timeline) -> Alignment:
    """Finds the run in the log.

    Raises:
        LogTooShort: the log ends before the run does.
        PowerLogError: it has too few samples a second or a gap, begins too late, does not show the pattern or shows it
            twice, or its clock drifts.
    """
    where, coarsest = str(log.path), timeline.plan.coarsest_s
    if log.interval_s > coarsest:
        raise PowerLogError(
            f"the log is too coarse: a sample every {log.interval_s:.2f} s, and this run's pattern takes one every "
            f"{coarsest:g} s at least",
            where=where,
            remedy="let the meter's program log more often, or measure with --full, whose pattern is slower",
        )
    log = _thinned(log, timeline.plan.chip_s / _SAMPLES_A_CHIP)
    try:
        shift, rate = _search(log, timeline)
    except PowerLogError:
        _require_length(log, timeline)
        raise
    _require_cover(log, timeline, shift, rate)
    for width in (1.0, 0.25):
        shift, rate, misfit = _refined(log, timeline, shift, rate, width * timeline.plan.chip_s)
    _require_cover(log, timeline, shift, rate)
    if abs(rate) > _MAX_RATE or misfit > timeline.plan.settle_s / 2:
        said = f"{1e2 * abs(rate):.2f}% {'fast' if rate > 0 else 'slow'}, and up to {misfit:.2f} s away from that"
        raise PowerLogError(
            f"the log's clock drifts against this machine's: {said}",
            where=where,
            remedy=f"log times that are measured, not counted from samples; {100 * _MAX_RATE:g}% and "
            f"{timeline.plan.settle_s / 2:g} s are put up with",
        )
    found = Alignment(shift, rate, 0.0, misfit)
    inside = _inside(found.run_times(log.times), 0.0, timeline.seconds)
    correlation = _correlation(_load(timeline, found.run_times(log.times[inside]), log.interval_s), log.watts[inside])
    if correlation < _LEAST_CORRELATION:
        raise _not_found(where, correlation)
    return Alignment(shift, rate, correlation, misfit)


def _thinned(log: PowerLog, step: float) -> PowerLog:
    """The log with the samples of each step of so many seconds averaged, where there are several."""
    if log.interval_s >= step:
        return log
    since = log.times - log.times[0]
    steps = (since / step).astype(np.int64)
    count = np.bincount(steps)
    there = count > 0
    times, watts = (np.bincount(steps, values)[there] / count[there] for values in (since, log.watts))
    return dataclasses.replace(log, times=log.times[0] + times, watts=watts)


def _load(timeline: Timeline, times: Values, width: float) -> Values:
    """The share of load, 0 to 1, in a window of `width` seconds around each time of the run."""
    edges = np.array(timeline.loads)
    ends = np.cumsum(edges[:, 1] - edges[:, 0])
    at = np.concatenate([[-1e12], edges.ravel()])
    loaded = np.concatenate([[0.0], np.column_stack([ends - (edges[:, 1] - edges[:, 0]), ends]).ravel()])
    return np.asarray((np.interp(times + width / 2, at, loaded) - np.interp(times - width / 2, at, loaded)) / width)


def _search(log: PowerLog, timeline: Timeline) -> tuple[float, float]:
    """(log time of the run's zero, rate) of the best place for the whole run, on a grid of an eighth of a chip."""
    step = timeline.plan.chip_s / _STEPS_A_CHIP
    begin = log.times[0]
    energy = np.concatenate([[0.0], np.cumsum(np.diff(log.times) * (log.watts[1:] + log.watts[:-1]) / 2)])
    grid = np.arange(begin, log.times[-1] + step, step)
    watts = np.diff(np.interp(grid, log.times, energy)) / step  # the mean of each step
    found = []
    count = int(np.ceil(_RATES * timeline.seconds / (timeline.plan.chip_s / 2)))
    for rate in np.linspace(-_RATES, _RATES, 2 * count + 1):
        gains, correlations, first = _gains(watts, _load(timeline, _middles(timeline, step, rate), step))
        at = int(np.argmax(gains))
        found.append((gains[at], correlations[at], float(rate), at, first, gains))
    gain, correlation, rate, at, first, gains = max(found, key=lambda f: f[0])
    if gain <= 0 or correlation < _LEAST_CORRELATION:
        raise _not_found(str(log.path), correlation)
    near = 2 * _STEPS_A_CHIP
    rivals = np.concatenate([gains[: max(0, at - near)], gains[at + near + 1 :]])
    if len(rivals) and rivals.max() > _RIVAL * gain:
        raise PowerLogError(
            "the log shows the run's pattern at more than one place",
            where=str(log.path),
            remedy="keep the part of the log that belongs to this run",
        )
    return float(begin + (at + first) * step), rate


def _middles(timeline: Timeline, step: float, rate: float) -> Values:
    """Times of the run in the middle of each step of the log's clock."""
    steps = int(timeline.seconds * (1 + rate) / step)
    return np.asarray((np.arange(steps) + 0.5) * step / (1 + rate), np.float64)


def _gains(watts: Values, load: Values) -> tuple[Values, Values, int]:
    """Gain in log-likelihood and correlation at every shift that overlaps enough; the first of these shifts."""
    least = int(_LEAST_OVERLAP * len(load))
    first, last = least - len(load), len(watts) - least
    if last < first:
        return np.zeros(1), np.zeros(1), 0
    shifts = np.arange(first, last + 1)
    low, high = np.maximum(0, shifts), np.minimum(len(watts), shifts + len(load))  # of the log
    n = high - low
    watts = watts - watts.mean()
    size = 1 << (len(watts) + len(load)).bit_length()
    cross = np.fft.irfft(np.fft.rfft(watts, size) * np.conj(np.fft.rfft(load, size)), size)[shifts]
    covariance = cross - _between(watts, low, high) * _between(load, low - shifts, high - shifts) / n
    variances = [
        np.maximum(_between(x**2, a, b) - _between(x, a, b) ** 2 / n, 0)
        for x, a, b in ((watts, low, high), (load, low - shifts, high - shifts))
    ]
    scale = np.sqrt(variances[0] * variances[1])
    correlation = np.where(scale > 1e-9, covariance / np.maximum(scale, 1e-9), 0.0).clip(1e-9 - 1, 1 - 1e-9)
    gains: Values = np.where(correlation > 0, -n / 2 * np.log1p(-(correlation**2)), 0.0)
    return gains, np.asarray(correlation, np.float64), first


def _between(values: Values, low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]) -> Values:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(sums[high] - sums[low])


def _refined(log: PowerLog, timeline: Timeline, shift: float, rate: float, width: float) -> tuple[float, float, float]:
    """Shift and rate by a line through the best shift of every part of the run, and the largest distance from it."""
    edges = np.linspace(0, timeline.seconds, _PARTS + 1)
    tried = np.linspace(-width, width, 81)
    moved, middles = [], []
    run = (log.times - shift) / (1 + rate)
    for low, high in itertools.pairwise(edges):
        part = _inside(run, low, high)
        times, watts = run[part], log.watts[part]
        found = [_correlation(_load(timeline, times - t, log.interval_s), watts) for t in tried] if len(times) > 3 else [0.0]
        if max(found) < _LEAST_CORRELATION / 2:
            raise PowerLogError(
                f"the log loses the run from second {low:.0f} to {high:.0f}: there is a gap in it, or its clock jumps",
                where=str(log.path),
                remedy="record it again, with nothing else running on the device or on the meter's host",
            )
        moved.append(_peak(tried, np.array(found)))
        middles.append((low + high) / 2)
    slope, intercept = np.polyfit(middles, moved, 1)
    misfit = float(np.abs(np.polyval([slope, intercept], middles) - moved).max())
    return float(shift + intercept * (1 + rate)), float((1 + rate) * (1 + slope) - 1), misfit


def _peak(tried: Values, found: Values) -> float:
    """Where a parabola through the best value and its neighbours has its top (at the ends: the best value)."""
    at = int(np.argmax(found))
    if not 0 < at < len(found) - 1:
        return float(tried[at])
    left, top, right = found[at - 1 : at + 2]
    curve = left - 2 * top + right
    return float(tried[at] + (tried[1] - tried[0]) * (0.5 * (left - right) / curve if curve < 0 else 0.0))


def _correlation(load: Values, watts: Values) -> float:
    if len(load) < 2 or np.ptp(load) == 0 or np.ptp(watts) == 0:
        return 0.0
    return float(np.corrcoef(load, watts)[0, 1])


def _inside(times: Values, low: float, high: float) -> npt.NDArray[np.int64]:
    return np.flatnonzero((times >= low) & (times <= high))


def _require_length(log: PowerLog, timeline: Timeline) -> None:
    """A log that is shorter than the run may not show it, and yet be whole later."""
    there, needed = log.times[-1] - log.times[0], (1 - _RATES) * (timeline.loads[-1][1] - timeline.loads[0][0])
    if there < needed:
        raise LogTooShort(
            f"the log does not cover the run: it is {there:.1f} s long, and the pattern {needed:.1f} s",
            where=str(log.path),
            remedy="let the meter log until bench has ended",
        )


def _require_cover(log: PowerLog, timeline: Timeline, shift: float, rate: float) -> None:
    """The log must reach from before the first load to behind the last."""
    loads = timeline.loads
    late = log.times[0] - (shift + (1 + rate) * loads[0][0])
    early = shift + (1 + rate) * loads[-1][1] - log.times[-1]
    if late > 0:
        raise PowerLogError(
            f"the log does not cover the run: it begins {late:.1f} s after the pattern did",
            where=str(log.path),
            remedy="start the meter's log before bench, and measure again",
        )
    if early > 0:
        raise LogTooShort(
            f"the log does not cover the run: it ends {early:.1f} s before the pattern did",
            where=str(log.path),
            remedy="let the meter log until bench has ended",
        )


def _not_found(where: str, correlation: float) -> PowerLogError:
    return PowerLogError(
        f"the log does not show the pattern of this run: correlation {correlation:.2f} at best",
        where=where,
        remedy="see that the meter feeds this device, that its log covers the run, and that nothing else runs here",
    )
