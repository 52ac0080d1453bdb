"""Ranges of activations from histograms: what both targets choose the scale of an int8 tensor by. numpy alone.

ONNX Runtime finds percentile and entropy ranges itself. Neither it nor ai-edge-quantizer finds the range of least squared
error for activations, and the latter knows ranges by their ends alone; both collect histograms, which these functions read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 8192  # 32 a step of the full range, so that bins stay finer than a step where most of a range is cut off
LEVELS = 256
Values = npt.NDArray[np.float64]

_LEAST_SHARE = 0.05  # of an end that is looked at; nothing good was ever below
_COARSE, _FINE = 20, 11  # candidates an end in the first pass, and around the best of it in the second


@dataclass(frozen=True)
class Histogram:
    """Values of a tensor: how many, float64 [n], around which value, float64 [n]; and the smallest and largest of all."""

    counts: Values
    centres: Values
    low: float
    high: float

    @classmethod
    def of_bins(cls, counts: npt.NDArray[np.generic], edges: npt.NDArray[np.generic], low: float, high: float) -> Histogram:
        """From n bins with n + 1 ascending edges; empty bins are left out."""
        filled, ends = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
        centres = np.clip((ends[1:] + ends[:-1]) / 2, low, high)
        return cls(filled[filled > 0], centres[filled > 0], float(low), float(high))


def percentile_range(values: Histogram, percentile: float) -> tuple[float, float]:
    """The range that holds `percentile` per cent of the values, as many left out below it as above."""
    part = np.cumsum(values.counts) / values.counts.sum()
    outside = (100 - percentile) / 200
    first = int(np.searchsorted(part, outside, side="right"))
    last = int(np.searchsorted(part, 1 - outside, side="left"))
    below, above = values.centres[min(first, len(part) - 1)], values.centres[min(last, len(part) - 1)]
    return float(values.low if first == 0 else below), float(values.high if last >= len(part) - 1 else above)


def mse_range(values: Histogram) -> tuple[float, float]:
    """The range whose 256 steps give the values back with the least squared error.

    A grid search over both ends, coarse and then fine, as in Nagel et al., A White Paper on Neural Network Quantization,
    2021, section 3.1 (mean squared error). Zero is always within the range, and a step, as both engines have it.
    """
    shares, step = np.linspace(_LEAST_SHARE, 1, _COARSE), (1 - _LEAST_SHARE) / (_COARSE - 1)
    low, high = _best(values, _ends(min(values.low, 0), shares), _ends(max(values.high, 0), shares))
    around = np.linspace(-step, step, _FINE)
    return _best(values, _near(low, min(values.low, 0), around), _near(high, max(values.high, 0), around))


def _ends(whole: float, shares: Values) -> Values:
    """Candidates for one end of a range, the widest first; 0 alone where no value lies on that side."""
    return np.sort(shares)[::-1] * whole if whole else np.zeros(1)


def _near(end: float, whole: float, around: Values) -> Values:
    return _ends(whole, np.clip(end / whole + around, _LEAST_SHARE, 1) if whole else around)


def _best(values: Histogram, lows: Values, highs: Values) -> tuple[float, float]:
    """The pair of least error; of equal ones the widest, so that nothing is cut off for nothing."""
    pairs = [(float(low), float(high)) for low in lows for high in highs]
    return min(pairs, key=lambda pair: squared_error(values, *pair))


def squared_error(values: Histogram, low: float, high: float) -> float:
    """Sum of squared differences between the values and what 256 even steps over low..high make of them."""
    if high <= low:
        return float((values.counts * values.centres**2).sum())
    scale = (high - low) / (LEVELS - 1)
    zero = np.round(-low / scale)
    steps = np.clip(np.round(values.centres / scale) + zero, 0, LEVELS - 1)
    return float((values.counts * ((steps - zero) * scale - values.centres) ** 2).sum())
