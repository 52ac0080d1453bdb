"""Ranges from histograms: the ends that are found are the best there are, by brute force."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.targets.ranges import BINS, LEVELS, Histogram, mse_range, percentile_range, squared_error


def histogram(values: npt.NDArray[np.float64]) -> Histogram:
    counts, edges = np.histogram(values, BINS)
    return Histogram.of_bins(counts, edges, values.min(), values.max())


def true_error(values: npt.NDArray[np.float64], low: float, high: float) -> float:
    """By quantizing the values themselves."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (LEVELS - 1)
    zero = round(-low / scale)
    steps = np.clip(np.round(values / scale) + zero, 0, LEVELS - 1)
    return float((((steps - zero) * scale - values) ** 2).sum())


RANDOM = np.random.RandomState(0)
SAMPLES = {
    "normal": RANDOM.randn(20_000),
    "long tail": RANDOM.standard_t(3, 20_000),
    "one outlier": np.append(RANDOM.randn(20_000), 500.0),
    "gelu": (lambda x: x * 0.5 * (1 + np.tanh(0.8 * x)))(RANDOM.randn(20_000)),
    "positive": RANDOM.exponential(size=20_000),
    "off zero": RANDOM.randn(20_000) + 40,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_error_of_a_range_is_that_of_quantizing_the_values_themselves(name: str) -> None:
    values = SAMPLES[name]
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    for share in (1.0, 0.5):
        found = squared_error(histogram(values), low * share, high * share)
        assert found == pytest.approx(true_error(values, low * share, high * share), rel=0.1)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_range_of_a_fine_grid_has_much_less_error_than_the_one_that_is_found(name: str) -> None:
    values = SAMPLES[name]
    found = true_error(values, *mse_range(histogram(values)))
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.linspace(0.02, 1, 50)
    least = min(true_error(values, low * a, high * b) for a in shares for b in shares)
    assert found <= 1.1 * least
    assert found <= 1.0001 * true_error(values, low, high)


def test_evenly_spread_values_keep_their_whole_range() -> None:
    low, high = mse_range(histogram(np.linspace(-3, 5, 50_001)))
    assert low == pytest.approx(-3, rel=0.02) and high == pytest.approx(5, rel=0.02)


def test_a_range_of_values_that_are_all_zero_is_zero() -> None:
    assert mse_range(Histogram.of_bins(np.array([0, 9, 0]), np.array([-1.5, -0.5, 0.5, 1.5]), 0.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_a_percentile_leaves_as_much_out_below_as_above(percentile: float) -> None:
    values = SAMPLES["long tail"]
    low, high = percentile_range(histogram(values), percentile)
    outside = (100 - percentile) / 200 * len(values)
    width = (values.max() - values.min()) / BINS
    assert abs((values < low - width / 2).sum() - outside) <= 1 + (np.abs(values - low) <= width).sum()
    assert abs((values > high + width / 2).sum() - outside) <= 1 + (np.abs(values - high) <= width).sum()


def test_the_hundredth_percentile_is_the_whole_range() -> None:
    values = SAMPLES["one outlier"]
    assert percentile_range(histogram(values), 100) == (values.min(), values.max())
