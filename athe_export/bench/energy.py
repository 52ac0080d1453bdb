"""Joules an image, from a power meter's log in which the run has been found.

Of each block of load the mean power is taken, less that of the idle before and behind it, which also removes what drifts
slowly; times the seconds and over the images of the block that is what one image takes above idle. Idle between two blocks
is halved between them, so that no two share a sample. The blocks of a row, one a round, then are independent, and give the
mean and its 95% interval (Student's t). A meter that shows few digits widens it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from athe_export.bench.alignment import Alignment
from athe_export.bench.load_pattern import RowName, Timeline
from athe_export.bench.power_log import PowerLog, Values
from athe_export.bench.student import mean_margin
from athe_export.errors import PowerLogError

_NORMAL = 1.96
_LEAST_SAMPLES = 2  # of load, and of idle at either side
_IDLE_DRIFT = 0.25  # of what load adds, by which idle may differ over the run


@dataclass(frozen=True)
class Power:
    """What the log shows of a block: watts of load and of idle around it."""

    load: float
    idle: float


@dataclass(frozen=True)
class RowEnergy:
    """Joules of an image above idle with their 95% interval, of so many images in so many rounds; `watts` under load."""

    row: RowName
    rounds: int
    images: int
    watts: float
    watts_above_idle: float
    joules: float
    lower: float
    upper: float

    def to_json(self) -> dict[str, Any]:
        named = dict(zip(("system", "kind", "target", "precision"), self.row, strict=True))
        interval = {n: _figure(v) for n, v in (("value", self.joules), ("lower", self.lower), ("upper", self.upper))}
        watts = {"watts": _figure(self.watts), "watts_above_idle": _figure(self.watts_above_idle)}
        return {**named, "rounds": self.rounds, "images": self.images, **watts, "joules": interval}


def energy_json(log: PowerLog, timeline: Timeline, alignment: Alignment) -> dict[str, Any]:
    """The `energy` object of `bench --json`, without the timeline.

    Raises:
        PowerLogError: the log has a gap, or idle is not steady enough to be subtracted.
    """
    powers = block_powers(log, timeline, alignment)
    rows = row_energies(timeline, powers, log.resolution_w)
    idle = [p.idle for p in powers]
    return {
        "refused": None,
        "log": {
            "file": str(log.path),
            "format": log.format,
            "samples": len(log.times),
            "interval_s": _figure(log.interval_s),
            "resolution_w": _figure(log.resolution_w),
            "skipped_lines": list(log.skipped_lines),
            "notes": list(log.notes),
        },
        "alignment": {
            "offset_s": round(alignment.offset_s, 3),
            "rate_ppm": round(1e6 * alignment.rate),
            "correlation": round(alignment.correlation, 3),
            "misfit_s": round(alignment.misfit_s, 3),
        },
        "idle_w": {"value": _figure(float(np.mean(idle))), "lowest": _figure(min(idle)), "highest": _figure(max(idle))},
        "rows": [row.to_json() for row in rows],
    }


def block_powers(log: PowerLog, timeline: Timeline, alignment: Alignment) -> list[Power]:
    """Load and idle of every block.

    Raises:
        PowerLogError: a window has too few samples, idle differs too much over the run, or load adds nothing.
    """
    run, settle, loads = alignment.run_times(log.times), timeline.plan.settle_s, timeline.loads
    found = []
    for block in timeline.blocks:
        before = max((end for _, end in loads if end <= block.start), default=0.0)
        behind = min((start for start, _ in loads if start >= block.end), default=timeline.seconds)
        load = _mean(log, run, block.counted_from, block.counted_to)
        idle = [
            _mean(log, run, (before + block.start) / 2, block.start - settle),
            _mean(log, run, block.end + settle, (block.end + behind) / 2),
        ]
        found.append(Power(load, sum(idle) / 2))
    added = float(np.median([p.load - p.idle for p in found]))
    spread = max(p.idle for p in found) - min(p.idle for p in found)
    if added <= 0 or spread > _IDLE_DRIFT * added:
        raise PowerLogError(
            f"idle power drifts: it differs by {spread:.3g} W over the run, and load adds {added:.3g} W",
            where=str(log.path),
            remedy="wait until the device has come to rest, stop what else runs there, and measure again",
        )
    return found


def row_energies(timeline: Timeline, powers: Sequence[Power], resolution_w: float) -> list[RowEnergy]:
    """Every row's energy, in the timeline's order.

    Args:
        powers: of the blocks, in their order; two a row at least.
        resolution_w: the step of power that the meter shows; both means may be off by up to half of it.
    """
    by_row: dict[int, list[int]] = {}
    for at, block in enumerate(timeline.blocks):
        by_row.setdefault(block.row, []).append(at)
    return [_row(timeline, powers, resolution_w, row, by_row[row]) for row in sorted(by_row)]


def _row(timeline: Timeline, powers: Sequence[Power], resolution_w: float, row: int, at: Sequence[int]) -> RowEnergy:
    blocks = [timeline.blocks[i] for i in at]
    seconds = np.array([(b.counted_to - b.counted_from) / b.images for b in blocks])
    load, above = (np.array(v) for v in ([powers[i].load for i in at], [powers[i].load - powers[i].idle for i in at]))
    joules: Values = above * seconds
    digits = _NORMAL * resolution_w * math.sqrt(1 / 6) * float(seconds.mean())  # of two means, each uniform
    mean, error = float(joules.mean()), math.hypot(mean_margin(list(joules)), digits)
    images, watts = sum(b.images for b in blocks), (float(load.mean()), float(above.mean()))
    return RowEnergy(timeline.rows[row], len(at), images, *watts, mean, mean - error, mean + error)


def _mean(log: PowerLog, run: Values, low: float, high: float) -> float:
    """Mean watts between two times of the run."""
    inside = log.watts[(run >= low) & (run <= high)]
    if len(inside) < _LEAST_SAMPLES:
        raise PowerLogError(
            f"the log has {len(inside)} samples from second {low:.1f} to {high:.1f} of the run: there is a gap in it",
            where=str(log.path),
            remedy="record it again; nothing else should run on the meter's host",
        )
    return float(inside.mean())


def _figure(value: float) -> float:
    return float(f"{value:.4g}")
