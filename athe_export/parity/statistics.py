"""The two intervals the gate stands on, one-sided at a stated confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """Lower and upper one-sided bounds, each holding at the confidence asked for."""

    lower: float
    upper: float


def paired_difference(lost: int, won: int, images: int, confidence: float) -> Interval:
    """Bounds of the true accuracy drop, as a share, between two systems on the same images.

    Wald bounds after adding half an image to each of the four cells: Agresti and Min, Simple improved confidence
    intervals for comparing matched proportions, Statistics in Medicine 24 (2005), section 3.

    Args:
        lost: images that the first system has right and the second wrong.
        won: the other way round.
        images: all images.
        confidence: of each bound, e.g. 0.95.
    """
    total = images + 2
    difference = (lost - won) / total
    variance = ((lost + won + 1) / total - difference**2) / total
    margin = NormalDist().inv_cdf(confidence) * math.sqrt(variance)
    return Interval(max(-1.0, difference - margin), min(1.0, difference + margin))


def proportion(hits: int, images: int, confidence: float) -> Interval:
    """Wilson score bounds of a share (E. B. Wilson, JASA 22, 1927)."""
    z = NormalDist().inv_cdf(confidence)
    share = hits / images
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    margin = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return Interval(max(0.0, middle - margin), min(1.0, middle + margin))
