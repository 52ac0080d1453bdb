"""Means with 95% intervals: over runs of a measurement, and over images. numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from athe_export.bench.student import mean_margin
from athe_export.parity.statistics import paired_difference, proportion

_Z = 1.959964
_ONE_SIDED = 0.975  # two such bounds make an interval of 95%
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its 95% interval."""

    value: float
    lower: float
    upper: float

    def to_json(self, digits: int = 6) -> dict[str, float]:
        return {name: round(float(v), digits) for name, v in vars(self).items()}


def mean_of_runs(values: Sequence[float]) -> Estimate:
    """Mean over runs, with Student's interval (`bench.student.mean_margin`).

    Raises:
        ValueError: less than two values.
    """
    mean, margin = float(np.mean(values)), mean_margin(values)
    return Estimate(mean, mean - margin, mean + margin)


def mean_of_images(right: Shares) -> Estimate:
    """Top-1 as a share, from each image's chance to be answered rightly, float64 [n].

    Wilson's interval where each is right or wrong; where chance decides, the normal one over images.
    """
    value = float(right.mean())
    if _is_certain(right):
        found = proportion(float(right.sum()), len(right), _ONE_SIDED)
        return Estimate(value, found.lower, found.upper)
    return _normal(right)


def mean_difference(right: Shares, other: Shares) -> Estimate:
    """How much larger the first system's top-1 is on the same images, as a share; both float64 [n].

    Bounds for matched pairs (`parity.statistics.paired_difference`) where each image is right or wrong for both.
    """
    if _is_certain(right) and _is_certain(other):
        lost, won = float((other > right).sum()), float((right > other).sum())
        drop = paired_difference(lost, won, len(right), _ONE_SIDED)
        return Estimate((won - lost) / len(right), -drop.upper, -drop.lower)
    return _normal(right - other)


def _is_certain(right: Shares) -> bool:
    return bool(np.isin(right, (0.0, 1.0)).all())


def _normal(values: Shares) -> Estimate:
    mean = float(values.mean())
    margin = _Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 1.0  # of one, nothing is known
    return Estimate(mean, mean - margin, mean + margin)
