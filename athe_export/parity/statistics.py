"""The few statistics the gate stands on: three intervals, one exact test, and how many images a decision takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MOST_IMAGES = 10**9  # an estimate that so many images would not decide lies on its limit


@dataclass(frozen=True)
class Interval:
    """Lower and upper one-sided bounds, each holding at the confidence asked for."""

    lower: float
    upper: float


def paired_difference(lost: float, won: float, images: float, confidence: float) -> Interval:
    """Bounds of the true accuracy drop, as a share, between two systems on the same images.

    Wald bounds after adding half an image to each of the four cells: Agresti and Min, Simple improved confidence
    intervals for comparing matched proportions, Statistics in Medicine 24 (2005), there Wald+2.

    Args:
        lost: images that the first system has right and the second wrong; fractions serve `images_needed`.
        won: the other way round.
        images: all images.
        confidence: of each bound, e.g. 0.95.
    """
    total = images + 2
    difference = (lost - won) / total
    variance = ((lost + won + 1) / total - difference**2) / total
    margin = NormalDist().inv_cdf(confidence) * math.sqrt(variance)
    return Interval(max(-1.0, difference - margin), min(1.0, difference + margin))


def proportion(hits: float, images: float, confidence: float) -> Interval:
    """Wilson score bounds of a share (E. B. Wilson, JASA 22, 1927)."""
    z = NormalDist().inv_cdf(confidence)
    share = hits / images
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    margin = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return Interval(max(0.0, middle - margin), min(1.0, middle + margin))


def ratio_of_sums(parts: npt.NDArray[np.float64], wholes: npt.NDArray[np.float64], confidence: float) -> Interval:
    """Bounds of the ratio of two sums over images, float64 [n] each: the usual large-sample ones (W. G. Cochran, Sampling
    Techniques, 3rd edition, 1977, sections 6.4 and 6.5).

    `wholes` must not sum to 0.
    """
    ratio = float(parts.sum() / wholes.sum())
    error = math.sqrt(float(((parts - ratio * wholes) ** 2).sum())) / float(wholes.sum())
    margin = NormalDist().inv_cdf(confidence) * error
    return Interval(max(0.0, ratio - margin), ratio + margin)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p-value of "the systems are right equally often" (Q. McNemar, Psychometrika 12, 1947).

    Of the images that only one of them has right, each is as likely to be the one's as the other's: twice the smaller
    binomial tail, 1 at most.
    """
    discordant, fewer = lost + won, min(lost, won)
    ways = math.lgamma(discordant + 1) - discordant * math.log(2)
    tail = math.fsum(math.exp(ways - math.lgamma(i + 1) - math.lgamma(discordant - i + 1)) for i in range(fewer + 1))
    return min(1.0, 2 * tail)


def images_needed(images: int, decided: Callable[[float], bool]) -> int | None:
    """The fewest images from which on a limit is decided, if the shares found so far stay.

    Args:
        images: those seen, which did not decide it.
        decided: whether `factor` times the images, each count `factor` times what it is, would.

    Returns:
        None where a thousand million would not: the estimate lies on the limit itself.
    """
    enough = images
    while not decided(enough / images):
        enough *= 2
        if enough > MOST_IMAGES:
            return None
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if decided(middle / images) else (middle, enough)
    return enough


def smallest_drop(discordant: float, images: int, confidence: float) -> float:
    """The drop, as a share, that so many images would on average just tell from none.

    Args:
        discordant: share of the images that exactly one of the two systems has right.
    """
    return -paired_difference(discordant * images / 2, discordant * images / 2, images, confidence).lower
