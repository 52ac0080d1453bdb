"""Holding a target's answers against the reference and the recipe's limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.parity.reference import Reference
from athe_export.parity.statistics import Interval, paired_difference, proportion
from athe_export.runtime.routing import RouterPolicy

PASS, FAIL, INCONCLUSIVE, NOT_GATED = "pass", "fail", "inconclusive", "not_gated"


@dataclass(frozen=True)
class GateLimits:
    """The recipe's `parity` section."""

    max_top1_drop_pp: float
    min_agreement: float
    min_router_agreement: float
    confidence: float


@dataclass(frozen=True)
class TargetAnswers:
    """What a target did on the gate's images: branch position and top class of each, int64 [n]."""

    branch: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]


@dataclass(frozen=True)
class LimitResult:
    """One limit: `value` is the bound that is held against `limit`."""

    name: str
    limit: float
    value: float
    verdict: str

    def said(self) -> str:
        """One line for a person: by how much it holds or breaks."""
        word = {PASS: "holds", FAIL: "is broken", INCONCLUSIVE: "cannot be decided with so few images"}[self.verdict]
        return f"{self.name} {self.limit:g} {word}: bound {self.value:.4g}, off by {abs(self.value - self.limit):.3g}"


@dataclass(frozen=True)
class ParityReport:
    """The gate's outcome; `to_json` is the documented `parity` object."""

    images: int
    verdict: str
    reference_top1: float
    targets: dict[str, dict[str, Any]]
    limits: tuple[LimitResult, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "verdict": self.verdict,
            "reference": {"top1": self.reference_top1},
            "targets": self.targets,
            "limits": [vars(limit) for limit in self.limits],
        }


def judge(
    reference: Reference,
    policy: RouterPolicy | None,
    answers: dict[str, TargetAnswers],
    branches: tuple[str, ...],
    limits: GateLimits,
) -> ParityReport:
    """Compares each target with the routed reference on the same images, paired.

    Args:
        reference: fp32 outputs.
        policy: the reference's routing; None: one branch.
        answers: per target.
        branches: names, easiest first.
        limits: what must hold, each on a one-sided bound at `limits.confidence`.
    """
    routed = reference.routed(policy)
    every = reference.answers()
    expected = every[routed, np.arange(len(routed))]
    right = expected == reference.labels
    results, rows = {}, []
    for target, found in answers.items():
        results[target] = _measure(reference, found, right, expected, routed, every, branches, limits)
        rows += _limits(target, found, reference.labels, right, expected, routed, limits, policy is not None)
    return ParityReport(len(routed), worst(r.verdict for r in rows), float(right.mean()), results, tuple(rows))


def worst(verdicts: Iterable[str]) -> str:
    """Fail outranks inconclusive outranks pass."""
    found = set(verdicts)
    return next((v for v in (FAIL, INCONCLUSIVE) if v in found), PASS)


def _measure(
    reference: Reference,
    found: TargetAnswers,
    right: npt.NDArray[np.bool_],
    expected: npt.NDArray[np.int64],
    routed: npt.NDArray[np.int64],
    every: npt.NDArray[np.int64],
    branches: tuple[str, ...],
    limits: GateLimits,
) -> dict[str, Any]:
    here = found.answer == reference.labels
    drop = _drop(right, here, limits.confidence)
    per_branch = {}
    for index, name in enumerate(branches):
        own = found.branch == index
        per_branch[name] = _branch(own, every[index], found.answer, reference.labels)
    return {
        "top1": float(here.mean()),
        "drop_pp": 100 * float(right.mean() - here.mean()),
        "drop_bound_pp": 100 * drop.upper,
        "drop_lower_bound_pp": 100 * drop.lower,
        "agreement": float((found.answer == expected).mean()),
        "router_agreement": float((found.branch == routed).mean()),
        "router_flips": int((found.branch != routed).sum()),
        "share": {name: float((found.branch == i).mean()) for i, name in enumerate(branches)},
        "branches": per_branch,
    }


def _branch(
    own: npt.NDArray[np.bool_],
    expected: npt.NDArray[np.int64],
    answer: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """One branch on the images the target routed to it, against the same branch in fp32 on the same images."""
    if not own.any():
        return {"images": 0, "reference_top1": None, "top1": None, "drop_pp": None, "agreement": None}
    before, after = (expected[own] == labels[own]).mean(), (answer[own] == labels[own]).mean()
    return {
        "images": int(own.sum()),
        "reference_top1": float(before),
        "top1": float(after),
        "drop_pp": 100 * float(before - after),
        "agreement": float((answer[own] == expected[own]).mean()),
    }


def _limits(
    target: str,
    found: TargetAnswers,
    labels: npt.NDArray[np.int64],
    right: npt.NDArray[np.bool_],
    expected: npt.NDArray[np.int64],
    routed: npt.NDArray[np.int64],
    limits: GateLimits,
    has_router: bool,
) -> list[LimitResult]:
    drop = _drop(right, found.answer == labels, limits.confidence)
    upper = Interval(100 * drop.lower, 100 * drop.upper)
    rows = [_at_most(f"{target}.max_top1_drop_pp", limits.max_top1_drop_pp, upper)]
    shares = [("min_agreement", limits.min_agreement, found.answer == expected)]
    if has_router:
        shares.append(("min_router_agreement", limits.min_router_agreement, found.branch == routed))
    for name, limit, same in shares:
        rows.append(_at_least(f"{target}.{name}", limit, proportion(int(same.sum()), len(same), limits.confidence)))
    return rows


def _drop(right: npt.NDArray[np.bool_], here: npt.NDArray[np.bool_], confidence: float) -> Interval:
    return paired_difference(int((right & ~here).sum()), int((~right & here).sum()), len(right), confidence)


def _at_most(name: str, limit: float, bounds: Interval) -> LimitResult:
    verdict = PASS if bounds.upper <= limit else FAIL if bounds.lower > limit else INCONCLUSIVE
    return LimitResult(name, limit, bounds.upper, verdict)


def _at_least(name: str, limit: float, bounds: Interval) -> LimitResult:
    verdict = PASS if bounds.lower >= limit else FAIL if bounds.upper < limit else INCONCLUSIVE
    return LimitResult(name, limit, bounds.lower, verdict)
