"""Holding a target's answers against the reference and the recipe's limits."""

from __future__ import annotations

import itertools
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
    """What a target did on the gate's images: branch position of each, int64 [n], and logits float32 [n, classes]."""

    branch: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    precision: str = "int8"

    @property
    def answer(self) -> npt.NDArray[np.int64]:
        """Top class of each image, int64 [n]."""
        return self.logits.argmax(-1)


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
    """The gate's outcome; `to_json` is the documented `parity` object.

    `targets` are keyed by `Manifest.system_name`; `between` compares each two targets at the same precision.
    """

    images: int
    verdict: str
    reference_top1: float
    targets: dict[str, dict[str, Any]]
    limits: tuple[LimitResult, ...]
    between: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "verdict": self.verdict,
            "reference": {"top1": self.reference_top1},
            "targets": self.targets,
            "limits": [vars(limit) for limit in self.limits],
            "between": list(self.between),
        }


def judge(
    reference: Reference,
    policy: RouterPolicy | None,
    answers: dict[str, TargetAnswers],
    branches: tuple[str, ...],
    limits: GateLimits,
) -> ParityReport:
    """Compares each target with the routed reference on the same images, paired.

    The whole system has to be surely inside each limit. A branch, on the images routed to it, must not be surely
    outside one: it may see few images, so that is all that can be asked of it; one that sees none is undecided.

    Args:
        reference: fp32 outputs.
        policy: the reference's routing; None: one branch.
        answers: per target.
        branches: names, easiest first.
        limits: what must hold, each on a one-sided bound at `limits.confidence`.
    """
    routed, every = reference.routed(policy), reference.answers()
    expected = every[routed, np.arange(len(routed))]
    results, rows = {}, []
    for target, found in answers.items():
        whole = _Comparison(expected, found.answer, reference.labels, limits.confidence)
        parts = {}
        for index, name in enumerate(branches):
            own = found.branch == index
            parts[name] = _Comparison(every[index][own], found.answer[own], reference.labels[own], limits.confidence)
        logits = reference.logits[routed, np.arange(len(routed))]
        results[target] = _measured(whole, parts, found.branch, routed) | {
            "max_logit_difference": _largest_difference(logits, found.logits, found.branch == routed)
        }
        rows += _whole_limits(target, whole, limits)
        if policy is not None:
            same = proportion(int((found.branch == routed).sum()), len(routed), limits.confidence)
            rows.append(_at_least(f"{target}.min_router_agreement", limits.min_router_agreement, same))
            for name, part in parts.items():
                rows += _branch_limits(f"{target}.{name}", part, limits)
    top1 = float((expected == reference.labels).mean())
    pairs = itertools.combinations(answers.items(), 2)
    between = tuple(_between(a, x, b, y) for (a, x), (b, y) in pairs if x.precision == y.precision)
    return ParityReport(len(routed), worst(r.verdict for r in rows), top1, results, tuple(rows), between)


def worst(verdicts: Iterable[str]) -> str:
    """Fail outranks inconclusive outranks pass."""
    found = set(verdicts)
    return next((v for v in (FAIL, INCONCLUSIVE) if v in found), PASS)


@dataclass(frozen=True)
class _Comparison:
    """Two systems' top classes on the same n images with their labels, int64 [n] each."""

    expected: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    confidence: float

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def drop_pp(self) -> Interval:
        """Bounds of the top-1 drop, percentage points."""
        before, after = self.expected == self.labels, self.answer == self.labels
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        share = paired_difference(lost, won, self.images, self.confidence)
        return Interval(100 * share.lower, 100 * share.upper)

    @property
    def agreement(self) -> Interval:
        return proportion(int((self.answer == self.expected).sum()), self.images, self.confidence)

    def to_json(self) -> dict[str, Any]:
        if not self.images:
            return {"reference_top1": None, "top1": None, "drop_pp": None, "agreement": None}
        before, after = float((self.expected == self.labels).mean()), float((self.answer == self.labels).mean())
        same = float((self.answer == self.expected).mean())
        return {"reference_top1": before, "top1": after, "drop_pp": 100 * (before - after), "agreement": same}


def _measured(
    whole: _Comparison,
    parts: dict[str, _Comparison],
    branch: npt.NDArray[np.int64],
    routed: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """One target's entry of the documented `parity` object; branches on the images that the target routed to them."""
    drop = whole.drop_pp
    return whole.to_json() | {
        "drop_bound_pp": drop.upper,
        "drop_lower_bound_pp": drop.lower,
        "router_agreement": float((branch == routed).mean()),
        "router_flips": int((branch != routed).sum()),
        "share": {name: part.images / whole.images for name, part in parts.items()},
        "branches": {name: {"images": part.images, **part.to_json()} for name, part in parts.items()},
    }


def _between(name: str, first: TargetAnswers, other_name: str, second: TargetAnswers) -> dict[str, Any]:
    """Two targets against each other on the same images; logits are compared where both took the same branch."""
    alike = first.branch == second.branch
    return {
        "targets": [name.split("/")[0], other_name.split("/")[0]],
        "precision": first.precision,
        "agreement": float((first.answer == second.answer).mean()),
        "router_agreement": float(alike.mean()),
        "max_logit_difference": _largest_difference(first.logits, second.logits, alike),
    }


def _largest_difference(
    first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]], where: npt.NDArray[np.bool_]
) -> float | None:
    """Largest absolute logit difference over the images of a mask; None where it is empty."""
    if not where.any():
        return None
    return float(np.abs(first[where].astype(np.float32) - second[where].astype(np.float32)).max())


def _whole_limits(target: str, whole: _Comparison, limits: GateLimits) -> list[LimitResult]:
    drop, limit = whole.drop_pp, limits.max_top1_drop_pp
    verdict = PASS if drop.upper <= limit else FAIL if drop.lower > limit else INCONCLUSIVE
    return [
        LimitResult(f"{target}.max_top1_drop_pp", limit, drop.upper, verdict),
        _at_least(f"{target}.min_agreement", limits.min_agreement, whole.agreement),
    ]


def _branch_limits(name: str, part: _Comparison, limits: GateLimits) -> list[LimitResult]:
    """`value` is the bound on the good side: where even that is outside the limit, the branch is surely broken."""
    if not part.images:
        return [LimitResult(f"{name}.images", 1, 0, INCONCLUSIVE)]
    drop, same = part.drop_pp.lower, part.agreement.upper
    return [
        LimitResult(f"{name}.max_top1_drop_pp", limits.max_top1_drop_pp, drop, _unless(drop > limits.max_top1_drop_pp)),
        LimitResult(f"{name}.min_agreement", limits.min_agreement, same, _unless(same < limits.min_agreement)),
    ]


def _at_least(name: str, limit: float, bounds: Interval) -> LimitResult:
    verdict = PASS if bounds.lower >= limit else FAIL if bounds.upper < limit else INCONCLUSIVE
    return LimitResult(name, limit, bounds.lower, verdict)


def _unless(broken: bool) -> str:
    return FAIL if broken else PASS
