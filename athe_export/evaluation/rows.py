"""Rows of the outcome: a system under a way of routing, with all its figures; and every system on corrupted images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from athe_export.evaluation.answers import Answers
from athe_export.evaluation.corruptions import Corruption
from athe_export.evaluation.energy import Energies
from athe_export.evaluation.intervals import Estimate, mean_difference, mean_of_images
from athe_export.evaluation.latency import Latencies, estimate_ms, times_as_fast
from athe_export.evaluation.policies import RANDOM, Policy, policies, untrained_policies
from athe_export.evaluation.subset import BalancedSubset
from athe_export.evaluation.systems import FLOPS_PER_MAC, System, dense_for

FAIL = "fail"


@dataclass(frozen=True)
class Measured:
    """What was measured: answers by key of the trained systems, times of all, the subset, the dense recipe's name."""

    systems: Sequence[System]
    answers: Mapping[str, Answers]
    latencies: Latencies
    subset: BalancedSubset | None
    dense: str | None
    energies: Energies = field(default_factory=Energies)

    def policies(self, system: System) -> list[Policy]:
        found = self.answers.get(system.key)
        if found is None:
            return untrained_policies(system.branches, system.built_shares())
        return policies(system.branches, found)


def rows_json(measured: Measured) -> list[dict[str, Any]]:
    """Every system under every policy, the deployed one first; those on the Pareto front are marked."""
    rows = [_row(measured, s, policy) for s in measured.systems for policy in measured.policies(s)]
    front = pareto_front(rows)
    return [row | {"pareto": at in front if _comparable(row) else None} for at, row in enumerate(rows)]


def pareto_front(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Positions of deployed rows than which no other is both as accurate and as fast and one of them more."""
    known = {at: (row["latency_ms"]["value"], -row["top1"]["value"]) for at, row in enumerate(rows) if _comparable(row)}
    return {
        at for at, own in known.items() if not any(o != own and o[0] <= own[0] and o[1] <= own[1] for o in known.values())
    }


def _comparable(row: Mapping[str, Any]) -> bool:
    return bool(row["deployed"] and row["top1"] and row["latency_ms"] and row["verdict"] != FAIL)


def _row(measured: Measured, system: System, policy: Policy) -> dict[str, Any]:
    dense = dense_for(system, measured.systems, measured.dense)
    dense = None if dense is system else dense
    mmacs = system.mmacs(policy.shares, policy.router)
    answers = measured.answers.get(system.key)
    energy = measured.energies.row_json(system, policy)
    cells = [answers.cell.key] if answers else []
    cells += [measured.energies.cell.key] if energy["energy_j"] and measured.energies.cell else []
    return {
        "system": system.key,
        "recipe": system.of.name,
        "target": system.target,
        "precision": system.precision,
        "primary": system.primary,
        "policy": policy.name,
        "deployed": policy.deployed,
        "dense": system.of.dense,
        "verdict": system.manifest.verdict,
        "trained": system.of.trained,
        "share": {name: round(share, 6) for name, share in policy.shares.items()},
        "share_easiest": round(policy.shares.get(system.branches[0], 0.0), 6),
        **_accuracy(measured, system, policy, dense),
        **_time(measured, system, policy, dense),
        "mmacs": round(mmacs, 3),
        "mflops": round(FLOPS_PER_MAC * mmacs, 3),
        "bytes": system.bytes(tuple(policy.shares), policy.router),
        **energy,
        "bundle_digest": system.of.bundle.digest,
        "cells": [*cells, *(cell.key for cell in measured.latencies.cells)],
    }


def _accuracy(measured: Measured, system: System, policy: Policy, dense: System | None) -> dict[str, Any]:
    answers = measured.answers.get(system.key)
    empty = dict.fromkeys(("images", "top1", "top1_minus_dense_pp", "top1_minus_random_pp", "subset"))
    if answers is None or policy.chance is None:
        return empty | {"top1_not_measured": "the weights are untrained: accuracy means nothing"}
    right, against_dense = policy.right(answers), None
    if dense is not None and dense.key in measured.answers:
        other = measured.answers[dense.key].correct()[:, 0].astype(np.float64)
        against_dense = percentage_points(mean_difference(right, other))
    by_chance = next((p.right(answers) for p in measured.policies(system) if p.name == RANDOM), None)
    return {
        "images": len(right),
        "top1": mean_of_images(right).to_json(),
        "top1_minus_dense_pp": against_dense,
        "top1_minus_random_pp": None if by_chance is None else percentage_points(mean_difference(right, by_chance)),
        "subset": _on_subset(answers, policy, measured.subset),
        "top1_not_measured": None,
    }


def percentage_points(found: Estimate) -> dict[str, float]:
    return Estimate(*(100 * v for v in dataclasses.astuple(found))).to_json(4)


def _on_subset(answers: Answers, policy: Policy, subset: BalancedSubset | None) -> dict[str, Any] | None:
    """Top-1 on the balanced subset and on its halves, and the share of either half that goes to the easiest branch."""
    if subset is None:
        return None
    assert policy.chance is not None
    right, found = policy.right(answers), {}
    for name, ids in (("all", subset.ids), ("simple", subset.simple), ("complex", subset.complex)):
        among = answers.among(ids)
        found[name] = {
            "images": int(among.sum()),
            "top1": mean_of_images(right[among]).to_json(),
            "share_easiest": round(float(policy.chance[among, 0].mean()), 6),
        }
    return found


def _time(measured: Measured, system: System, policy: Policy, dense: System | None) -> dict[str, Any]:
    seconds = measured.latencies.seconds(system, policy)
    if isinstance(seconds, str):
        return dict.fromkeys(("latency_ms", "times_as_fast_as_dense", "queries")) | {"latency_not_measured": seconds}
    ratio = None
    if dense is not None:
        (single,) = measured.policies(dense)
        other = measured.latencies.seconds(dense, single)
        assert not isinstance(other, str)  # one branch, which every image takes
        ratio = times_as_fast(seconds, other).to_json(4)
    runs = [round(1e3 * s, 6) for s in seconds]
    ms = estimate_ms(seconds).to_json() | {"runs": runs}
    queries = measured.latencies.queries(system, policy)
    return {"latency_ms": ms, "times_as_fast_as_dense": ratio, "queries": queries, "latency_not_measured": None}


def robustness_json(
    system: System, answers: Mapping[Corruption | None, Answers], dense: Mapping[Corruption | None, Answers] | None
) -> list[dict[str, Any]]:
    """A system as it is deployed on the same images clean (None) and under each corruption and strength."""
    rows = []
    for corruption, found in answers.items():
        policy = policies(system.branches, found)[0]
        right, difference = policy.right(found), None
        if dense is not None:
            other = dense[corruption].correct()[:, 0].astype(np.float64)
            difference = percentage_points(mean_difference(right, other))
        rows.append(
            {
                "system": system.key,
                "recipe": system.of.name,
                "target": system.target,
                "precision": system.precision,
                "primary": system.primary,
                "verdict": system.manifest.verdict,
                "corruption": corruption.name if corruption else "none",
                "strength": corruption.strength if corruption else 0,
                "level": corruption.level if corruption else 0.0,
                "images": len(right),
                "top1": mean_of_images(right).to_json(),
                "top1_minus_dense_pp": difference,
                "share": {name: round(share, 6) for name, share in policy.shares.items()},
                "share_easiest": round(policy.shares.get(system.branches[0], 0.0), 6) if system.routed else None,
                "cell": found.cell.key,
            }
        )
    return rows
