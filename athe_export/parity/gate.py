"""Holding a target's answers against the reference and the recipe's limits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.parity.answers import TargetAnswers, TokenFindings, counted
from athe_export.parity.attribution import attribute
from athe_export.parity.attribution import said as attribution_said
from athe_export.parity.diagnosis import class_shift, noise_said, said_of_hop, swapped_branches
from athe_export.parity.hops import Images, weakest
from athe_export.parity.limits import (
    FAIL,
    PASS,
    GateLimits,
    LimitResult,
    Rules,
    branch_limits,
    noise_limit,
    router_limit,
    whole_limits,
    worst,
)
from athe_export.parity.reference import Reference
from athe_export.runtime.routing import RouterPolicy

Hop = dict[str, Any]


@dataclass(frozen=True)
class ParityReport:
    """The gate's outcome; `to_json` is the documented `parity` object.

    `targets` are keyed by `Manifest.system_name`; `between` compares each two targets at the same precision. `findings`
    name where a limit that does not hold was missed, a line each; `notes` what the gate could not do.
    """

    images: int
    verdict: str
    reference_top1: float
    confidence: float
    targets: dict[str, dict[str, Any]]
    limits: tuple[LimitResult, ...]
    between: tuple[dict[str, Any], ...] = ()
    hops: tuple[Hop, ...] = ()
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[str, ...]:
        """What did not hold and where it went wrong, a line each."""
        return (*(limit.said() for limit in self.limits if limit.verdict != PASS), *self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "verdict": self.verdict,
            "reference": {"top1": self.reference_top1},
            "confidence": self.confidence,
            "targets": self.targets,
            "limits": [limit.to_json() for limit in self.limits],
            "between": list(self.between),
            "hops": list(self.hops),
            "findings": list(self.findings),
            "notes": list(self.notes),
        }


def judge(
    reference: Reference,
    policy: RouterPolicy | None,
    answers: Mapping[str, TargetAnswers],
    branches: tuple[str, ...],
    limits: GateLimits,
    hops: tuple[Hop, ...] = (),
    tokens: Mapping[str, TokenFindings] | None = None,
    notes: tuple[str, ...] = (),
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
        hops: of `hops.measure_hops`; findings are taken from them.
        tokens: per target, where they were measured.
        notes: what to say beside the verdict.
    """
    routed, every = reference.routed(policy), reference.answers()
    position = np.arange(len(routed))
    expected, logits = every[routed, position], reference.logits[routed, position]
    images = Images(reference.labels, routed, branches)
    rules = Rules(limits, len(answers) * (2 + len(branches) + (1 + 2 * len(branches) if policy is not None else 0)))
    results, rows, findings = {}, [], []
    for target, found in answers.items():
        own = _limits_of(target, images, every, expected, found, rules)
        own += _noise_limits(target, images, logits, found, rules)
        results[target] = _measured(images, every, expected, found, limits.confidence) | {
            "max_logit_difference": _largest_difference(logits, found.logits, found.branch == routed),
            "attribution": attribute(images, reference.ids, expected, found, (tokens or {}).get(target)),
        }
        rows += own
        if worst(row.verdict for row in own) != PASS:
            findings += _findings(target, reference, images, expected, found, hops, own, limits.confidence)
            findings.append(attribution_said(target, results[target]["attribution"]))
    rows += _class_order(expected, reference, limits.confidence)
    top1 = float((expected == reference.labels).mean())
    pairs = itertools.combinations(answers.items(), 2)
    between = tuple(_between(a, x, b, y) for (a, x), (b, y) in pairs if x.precision == y.precision)
    verdict = worst(r.verdict for r in rows)
    return ParityReport(
        len(routed), verdict, top1, limits.confidence, results, tuple(rows), between, hops, tuple(findings), notes
    )


def _limits_of(
    target: str,
    images: Images,
    every: npt.NDArray[np.int64],
    expected: npt.NDArray[np.int64],
    found: TargetAnswers,
    rules: Rules,
) -> list[LimitResult]:
    """Of the whole, then of the router and of each branch on the images that the target sends to it."""
    rows = whole_limits(target, counted(expected, found.answer, images.labels), rules)
    if len(images.branches) > 1:
        rows.append(router_limit(target, int((found.branch == images.routed).sum()), len(expected), rules))
        for index, name in enumerate(images.branches):
            own = found.branch == index
            counts = counted(every[index][own], found.answer[own], images.labels[own])
            rows += branch_limits(f"{target}.{name}", counts, rules)
    return rows


def _noise_limits(
    target: str, images: Images, expected: npt.NDArray[np.floating[Any]], found: TargetAnswers, rules: Rules
) -> list[LimitResult]:
    """Of each branch, on the images that the reference sends to it."""
    rows = []
    for index, name in enumerate(images.branches):
        own = images.routed == index
        rows += noise_limit(f"{target}.{name}", expected[own], found.on_reference_route[own], rules)
    return rows


def _findings(
    target: str,
    reference: Reference,
    images: Images,
    expected: npt.NDArray[np.int64],
    found: TargetAnswers,
    hops: tuple[Hop, ...],
    limits: list[LimitResult],
    confidence: float,
) -> list[str]:
    """Where a target that misses one of its limits goes wrong, as far as that can be told."""
    lines: list[str] = []
    if hop := weakest(hops, target.split("/")[0], found.precision):
        lines.append(said_of_hop(hop))
    order = [f"{target}: {line}" for line in swapped_branches(reference, images.routed, found, images.branches)]
    if shift := class_shift(expected, found.answer, reference.logits.shape[-1], confidence):
        order.append(f"{target} answers are off by {shift} classes: its outputs stand in another order than the labels")
    lines += order or noise_said(target, limits)  # what stands in another's place is far from it, too
    if flips := int((found.branch != images.routed).sum()):
        took, meant = (np.bincount(x, minlength=len(images.branches)) / len(expected) for x in (found.branch, images.routed))
        shares = ", ".join(
            f"{n} {100 * a:.1f}% for {100 * b:.1f}%" for n, a, b in zip(images.branches, took, meant, strict=True)
        )
        lines.append(f"{target}: the router sends {flips} images elsewhere than the reference does ({shares})")
    return lines


def _class_order(expected: npt.NDArray[np.int64], reference: Reference, confidence: float) -> list[LimitResult]:
    """A broken limit where the reference itself is right about another order of classes than the labels'; else none.

    Nothing else would show it: reference and target would be wrong alike.
    """
    shift = class_shift(reference.labels, expected, reference.logits.shape[-1], confidence)
    if shift is None:
        return []
    why = f"the reference's answers are off by {shift} classes from the labels: these are in another order than in training"
    return [LimitResult("reference.class_shift", 0, shift, FAIL, None, None, len(expected), why=why)]


def _compared(
    expected: npt.NDArray[np.int64], answer: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    if not len(labels):
        return {"reference_top1": None, "top1": None, "drop_pp": None, "agreement": None}
    before, after = float((expected == labels).mean()), float((answer == labels).mean())
    same = float((answer == expected).mean())
    return {"reference_top1": before, "top1": after, "drop_pp": 100 * (before - after), "agreement": same}


def _measured(
    images: Images,
    every: npt.NDArray[np.int64],
    expected: npt.NDArray[np.int64],
    found: TargetAnswers,
    confidence: float,
) -> dict[str, Any]:
    """One target's entry of the documented `parity` object; branches on the images that the target routed to them."""
    labels, branch, answer = images.labels, found.branch, found.answer
    drop = counted(expected, answer, labels).drop_pp(confidence)
    parts = {}
    for index, name in enumerate(images.branches):
        own = branch == index
        parts[name] = {"images": int(own.sum()), **_compared(every[index][own], answer[own], labels[own])}
    return _compared(expected, answer, labels) | {
        "drop_bound_pp": drop.upper,
        "drop_lower_bound_pp": drop.lower,
        "router_agreement": float((branch == images.routed).mean()),
        "router_flips": int((branch != images.routed).sum()),
        "share": {name: part["images"] / len(labels) for name, part in parts.items()},
        "branches": parts,
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
