"""The recipe's limits, and the verdict on each: from counts of images to pass, fail or inconclusive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.parity.statistics import Interval, images_needed, paired_difference, proportion, ratio_of_sums

MOST_DB = 150.0  # said of logits that do not differ, of which the ratio is endless
PASS, FAIL, INCONCLUSIVE, NOT_GATED = "pass", "fail", "inconclusive", "not_gated"


@dataclass(frozen=True)
class GateLimits:
    """The recipe's `parity` section; `min_sqnr_db` None: a bundle from before there was such a limit."""

    max_top1_drop_pp: float
    min_agreement: float
    min_router_agreement: float
    confidence: float
    min_sqnr_db: float | None = None


@dataclass(frozen=True)
class Rules:
    """The limits, and the number of `checks` that a gate makes by them.

    All checks have to pass for a pass, so each stands on its bound at `limits.confidence`. One of them is enough for a
    fail, so the chance to fail a sound bundle is shared out among them (Bonferroni).
    """

    limits: GateLimits
    checks: int

    @property
    def fail_confidence(self) -> float:
        return 1 - (1 - self.limits.confidence) / self.checks


@dataclass(frozen=True)
class Counts:
    """Two systems' answers on the same images, counted.

    `lost` only the first has right, `won` only the second; `same` images have the same answer.
    """

    images: int
    lost: int
    won: int
    same: int

    @property
    def measured_drop_pp(self) -> float:
        return 100 * (self.lost - self.won) / self.images

    @property
    def measured_agreement(self) -> float:
        return self.same / self.images

    def drop_pp(self, confidence: float, factor: float = 1) -> Interval:
        """Bounds of the top-1 drop, percentage points, as if there were `factor` times the images."""
        share = paired_difference(factor * self.lost, factor * self.won, factor * self.images, confidence)
        return Interval(100 * share.lower, 100 * share.upper)

    def agreement(self, confidence: float, factor: float = 1) -> Interval:
        return proportion(factor * self.same, factor * self.images, confidence)


@dataclass(frozen=True)
class LimitResult:
    """One limit: `value` is the bound that is held against `limit`, one of `lower` and `upper` around what was `measured`.

    `lower` and `upper` are one-sided bounds of what was measured on `images`: the one that a pass stands on at the
    recipe's confidence, the one that a fail stands on at `Rules.fail_confidence`. `images_needed` would decide what is
    undecided, if the estimate stays; None where it is decided, or lies on the limit. `why` says what numbers do not.
    """

    name: str
    limit: float
    value: float
    verdict: str
    lower: float | None
    upper: float | None
    images: int
    measured: float | None = None
    images_needed: int | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "why" or value}

    def said(self) -> str:
        """One line for a person: by how much it holds or breaks, and what would decide it."""
        word = {PASS: "holds", FAIL: "is broken", INCONCLUSIVE: "cannot be decided with so few images"}[self.verdict]
        line = f"{self.name} {self.limit:g} {word}: bound {self.value:.4g}, off by {abs(self.value - self.limit):.3g}"
        if self.verdict == INCONCLUSIVE and not self.why:
            line += (
                f"; {self.images:,} images leave {self.lower:.4g} to {self.upper:.4g}; if it stays at {self.measured:.4g}, "
            )
            line += f"about {self.images_needed:,} would decide" if self.images_needed else "no number would decide"
        return line + (f"; {self.why}" if self.why else "")


def worst(verdicts: Iterable[str]) -> str:
    """Fail outranks inconclusive outranks pass."""
    found = set(verdicts)
    return next((v for v in (FAIL, INCONCLUSIVE) if v in found), PASS)


def whole_limits(target: str, counts: Counts, rules: Rules) -> list[LimitResult]:
    """The whole system has to be surely inside each limit."""
    limits = rules.limits
    return [
        _at_most(f"{target}.max_top1_drop_pp", limits.max_top1_drop_pp, counts, rules),
        _at_least(f"{target}.min_agreement", limits.min_agreement, counts, rules),
    ]


def router_limit(target: str, alike: int, images: int, rules: Rules) -> LimitResult:
    """Of so many images so many took the reference's branch."""
    return _at_least(f"{target}.min_router_agreement", rules.limits.min_router_agreement, Counts(images, 0, 0, alike), rules)


def branch_limits(name: str, counts: Counts, rules: Rules) -> list[LimitResult]:
    """A branch must not be surely outside a limit: it may see few images, so that is all that can be asked of it.

    `value` is the bound on the good side: where even that is outside the limit, the branch is surely broken. A branch
    that sees no image is undecided.
    """
    if not counts.images:
        return [LimitResult(f"{name}.images", 1, 0, INCONCLUSIVE, None, None, 0, why="no image was routed to it")]
    most, least, sure = rules.limits.max_top1_drop_pp, rules.limits.min_agreement, rules.limits.confidence
    drop, same = counts.drop_pp(rules.fail_confidence).lower, counts.agreement(rules.fail_confidence).upper
    upper, lower = counts.drop_pp(sure).upper, counts.agreement(sure).lower
    lost, differs = FAIL if drop > most else PASS, FAIL if same < least else PASS
    return [
        LimitResult(f"{name}.max_top1_drop_pp", most, drop, lost, drop, upper, counts.images, counts.measured_drop_pp),
        LimitResult(f"{name}.min_agreement", least, same, differs, lower, same, counts.images, counts.measured_agreement),
    ]


def decibels(noise_over_signal: float) -> float:
    """The ratio of signal to noise, from its inverse."""
    return MOST_DB if noise_over_signal <= 10 ** (-MOST_DB / 10) else -10 * math.log10(noise_over_signal)


def noise_limit(
    name: str, expected: npt.NDArray[np.floating[Any]], found: npt.NDArray[np.floating[Any]], rules: Rules
) -> list[LimitResult]:
    """A branch's logits must not surely be further from the reference's than sound int8 leaves them.

    Answers alone hide it where images are easy: ranges that do not fit cost them confidence first. `value` is the bound on
    the good side, as of `branch_limits`. Nothing is said of no image, nor where there is no such limit.

    Args:
        expected: the reference's logits of the branch, float [n, classes]; not all 0.
        found: a target's on the same images.
    """
    least = rules.limits.min_sqnr_db
    if least is None or not len(expected):
        return []
    signal = expected.astype(np.float64)
    noise = ((found.astype(np.float64) - signal) ** 2).sum(1)
    power = (signal**2).sum(1)
    best = decibels(ratio_of_sums(noise, power, rules.fail_confidence).lower)
    worst_case = decibels(ratio_of_sums(noise, power, rules.limits.confidence).upper)
    measured, verdict = decibels(float(noise.sum() / power.sum())), FAIL if best < least else PASS
    return [LimitResult(f"{name}.min_sqnr_db", least, best, verdict, worst_case, best, len(expected), measured)]


def _at_most(name: str, limit: float, counts: Counts, rules: Rules) -> LimitResult:
    """Of a drop: the upper bound is what a pass stands on."""

    def verdict(factor: float) -> str:
        inside = counts.drop_pp(rules.limits.confidence, factor).upper <= limit
        outside = counts.drop_pp(rules.fail_confidence, factor).lower > limit
        return PASS if inside else FAIL if outside else INCONCLUSIVE

    upper, lower = counts.drop_pp(rules.limits.confidence).upper, counts.drop_pp(rules.fail_confidence).lower
    needed, measured = _needed(counts.images, verdict), counts.measured_drop_pp
    return LimitResult(name, limit, upper, verdict(1), lower, upper, counts.images, measured, needed)


def _at_least(name: str, limit: float, counts: Counts, rules: Rules) -> LimitResult:
    """Of a share of like answers or decisions: the lower bound is what a pass stands on."""

    def verdict(factor: float) -> str:
        inside = counts.agreement(rules.limits.confidence, factor).lower >= limit
        outside = counts.agreement(rules.fail_confidence, factor).upper < limit
        return PASS if inside else FAIL if outside else INCONCLUSIVE

    lower, upper = counts.agreement(rules.limits.confidence).lower, counts.agreement(rules.fail_confidence).upper
    needed, measured = _needed(counts.images, verdict), counts.measured_agreement
    return LimitResult(name, limit, lower, verdict(1), lower, upper, counts.images, measured, needed)


def _needed(images: int, verdict: Callable[[float], str]) -> int | None:
    return None if verdict(1) != INCONCLUSIVE else images_needed(images, lambda factor: verdict(factor) != INCONCLUSIVE)
