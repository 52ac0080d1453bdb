"""The gate's statistics against published values, statsmodels, their own limits and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from athe_export.parity.statistics import (
    Interval,
    images_needed,
    mcnemar,
    paired_difference,
    proportion,
    smallest_drop,
)

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


@pytest.mark.parametrize(("hits", "images"), [(0, 40), (7, 40), (970, 1000), (9987, 10_000), (300, 300)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_a_share_has_statsmodels_bounds(hits: int, images: int, confidence: float) -> None:
    expected = proportion_confint(hits, images, alpha=2 * (1 - confidence), method="wilson")
    found = proportion(hits, images, confidence)
    assert (found.lower, found.upper) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("lost", "won", "images"), [(0, 0, 300), (5, 2, 98), (30, 12, 800), (210, 190, 10_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_a_paired_difference_has_statsmodels_bounds(lost: int, won: int, images: int, confidence: float) -> None:
    """Of the mean of the paired differences, half an image added to each cell; statsmodels divides by one image less."""
    weights = np.array([lost + 0.5, won + 0.5, images - lost - won + 1])
    low, high = DescrStatsW([1.0, -1.0, 0.0], weights).zconfint_mean(alpha=2 * (1 - confidence))
    middle, margin = (low + high) / 2, (high - low) / 2 * math.sqrt((images + 1) / (images + 2))
    found = paired_difference(lost, won, images, confidence)
    assert (found.lower, found.upper) == pytest.approx((middle - margin, middle + margin), abs=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (3, 3), (10, 2), (86, 150), (400, 395), (2100, 1800)])
def test_the_exact_test_has_statsmodels_p_value(lost: int, won: int) -> None:
    expected = float(exact_mcnemar([[1, lost], [won, 1]], exact=True).pvalue)
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-8)
    assert mcnemar(won, lost) == mcnemar(lost, won)


def test_the_exact_test_by_hand() -> None:
    """Of 12 coins 10 or more, or 2 or fewer, show one side: 2 x (1 + 12 + 66) / 4096."""
    assert mcnemar(10, 2) == pytest.approx(2 * 79 / 4096)


@pytest.mark.parametrize("threshold", [301, 302, 1000, 4321, 999_999])
def test_the_fewest_images_that_decide_are_found(threshold: int) -> None:
    def decided(factor: float) -> bool:
        return round(factor * 300) >= threshold

    assert images_needed(300, decided) == threshold


def test_what_no_number_of_images_decides_needs_none() -> None:
    assert images_needed(300, lambda factor: False) is None


def test_the_smallest_drop_is_just_told_from_none() -> None:
    """At 4% disagreement 1,000 images tell about 1 pp from none, 10,000 a third of that."""
    for images, about in ((1000, 0.0105), (10_000, 0.0033)):
        drop = smallest_drop(0.04, images, 0.95)
        assert drop == pytest.approx(about, abs=1e-4)
        lost, won = (0.04 + 1.05 * drop) / 2 * images, (0.04 - 1.05 * drop) / 2 * images
        assert paired_difference(lost, won, images, 0.95).lower > 0
        assert paired_difference(lost - 0.1 * drop * images, won, images, 0.95).lower < 0
