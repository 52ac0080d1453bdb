"""The gate's two intervals against published values, their own limits and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from athe_export.parity.statistics import Interval, paired_difference, proportion

DRAWS = 4000  # of a simulation; the simulated coverage is then within 0.01 of the true one, at three deviations


@pytest.mark.parametrize(
    ("hits", "images", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_the_published_wilson_bounds(hits: int, images: int, lower: float, upper: float) -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: two-sided 95%."""
    found = proportion(hits, images, 0.975)
    assert (round(found.lower, 4), round(found.upper, 4)) == (lower, upper)


def test_a_share_bounds_solve_the_score_equation() -> None:
    """The definition: a bound is the share from which the observed one is exactly z deviations away; z(0.95) = 1.6449."""
    found = proportion(970, 1000, 0.95)
    for bound in (found.lower, found.upper):
        assert abs(0.97 - bound) / math.sqrt(bound * (1 - bound) / 1000) == pytest.approx(1.6448536, abs=1e-6)


def test_a_paired_difference_has_bounds_computed_by_hand() -> None:
    """The approval ratings of A. Agresti, Categorical Data Analysis: 150 and 86 of 1600 changed their minds.

    (150 - 86) / 1602 = 0.039950; ((150.5 + 86.5) / 1602 - 0.039950^2) / 1602 = 9.13508e-5, its root 0.0095578;
    0.039950 -+ 1.959964 x 0.0095578.
    """
    found = paired_difference(150, 86, 1600, 0.975)
    assert found.lower == pytest.approx(0.021217, abs=2e-6)
    assert found.upper == pytest.approx(0.058683, abs=2e-6)


def test_no_discordant_image_still_leaves_doubt() -> None:
    """One image of 1002 is spread over the discordant cells: margin z x sqrt(1 / 1002) / sqrt(1002) = z / 1002."""
    found = paired_difference(0, 0, 1000, 0.95)
    assert found.upper == -found.lower == pytest.approx(1.6448536 / 1002)


@pytest.mark.parametrize("images", [1, 2, 50, 10_000])
def test_all_discordant_stays_within_what_a_share_can_be(images: int) -> None:
    lost, won = paired_difference(images, 0, images, 0.999), paired_difference(0, images, images, 0.999)
    for found in (lost, won):
        assert -1 <= found.lower <= found.upper <= 1
    assert lost.upper > 0.9
    assert won == Interval(-lost.upper, -lost.lower)


@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (0, 10_000), (10_000, 10_000)])
def test_none_and_all_stay_within_a_share_and_leave_doubt_on_the_open_side(hits: int, images: int) -> None:
    found = proportion(hits, images, 0.95)
    assert 0 <= found.lower < found.upper <= 1
    assert found.upper == pytest.approx(1) if hits else found.lower == pytest.approx(0, abs=1e-12)


def test_swapping_the_systems_mirrors_the_bounds() -> None:
    found, mirrored = paired_difference(30, 12, 800, 0.95), paired_difference(12, 30, 800, 0.95)
    assert mirrored.lower == pytest.approx(-found.upper)
    assert mirrored.upper == pytest.approx(-found.lower)


def test_counting_misses_mirrors_a_share() -> None:
    hits, misses = proportion(30, 800, 0.95), proportion(770, 800, 0.95)
    assert (1 - misses.upper, 1 - misses.lower) == pytest.approx((hits.lower, hits.upper))


def test_more_images_and_less_confidence_narrow_both_intervals() -> None:
    def width(found: Interval) -> float:
        return found.upper - found.lower

    assert width(proportion(970, 1000, 0.95)) < width(proportion(97, 100, 0.95))
    assert width(proportion(97, 100, 0.9)) < width(proportion(97, 100, 0.95))
    assert width(paired_difference(30, 20, 1000, 0.95)) < width(paired_difference(3, 2, 100, 0.95))
    assert width(paired_difference(3, 2, 100, 0.9)) < width(paired_difference(3, 2, 100, 0.95))


def test_confidence_one_half_is_the_estimate_itself() -> None:
    assert proportion(97, 100, 0.5) == Interval(0.97, 0.97)
    found = paired_difference(5, 2, 98, 0.5)
    assert found.lower == found.upper == 0.03


@pytest.mark.parametrize("images", [200, 2000])
@pytest.mark.parametrize("share", [0.9, 0.97])
def test_each_bound_of_a_share_covers_as_often_as_it_says(images: int, share: float) -> None:
    """Exactly, over all outcomes. A pass stands on the lower bound; the upper one is a little bold on few images."""
    found = [proportion(hits, images, 0.95) for hits in range(images + 1)]
    chances = [math.exp(_log_binomial(hits, images, share)) for hits in range(images + 1)]
    below = sum(c for c, f in zip(chances, found, strict=True) if f.lower <= share)
    above = sum(c for c, f in zip(chances, found, strict=True) if f.upper >= share)
    assert 0.94 < below < 0.965
    assert 0.915 < above < 0.965


def _log_binomial(hits: int, images: int, share: float) -> float:
    ways = math.lgamma(images + 1) - math.lgamma(hits + 1) - math.lgamma(images - hits + 1)
    return ways + hits * math.log(share) + (images - hits) * math.log1p(-share)


@pytest.mark.parametrize("images", [200, 2000])
@pytest.mark.parametrize(("losing", "winning"), [(0.02, 0.02), (0.04, 0.01)])
def test_each_bound_of_a_drop_covers_as_often_as_it_says(images: int, losing: float, winning: float) -> None:
    cells = np.random.RandomState(0).multinomial(images, [losing, winning, 1 - losing - winning], DRAWS)
    found = [paired_difference(int(lost), int(won), images, 0.95) for lost, won, _ in cells]
    assert np.mean([f.lower <= losing - winning for f in found]) > 0.925
    assert np.mean([f.upper >= losing - winning for f in found]) > 0.925
    assert np.mean([f.lower <= losing - winning <= f.upper for f in found]) < 0.95
