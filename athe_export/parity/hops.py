"""The way from torch to a deployed graph, hop by hop: what each step alone costs, routed and per branch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.parity.answers import TargetAnswers, TokenFindings, counted
from athe_export.parity.statistics import mcnemar, paired_difference

REFERENCE = "torch fp32"
ROUTED = "routed"
NOT_TRACED = "chosen tokens are compared where a bundle is built: that takes torch"
_CHUNK = 4096  # images whose probabilities are held at once
Key = tuple[str, str]  # target and precision


@dataclass(frozen=True)
class Images:
    """The gate's n images as every hop sees them: labels and the reference's branch, int64 [n], branch names in order."""

    labels: npt.NDArray[np.int64]
    routed: npt.NDArray[np.int64]
    branches: tuple[str, ...]


def measure_hops(
    images: Images,
    reference: TargetAnswers,
    answers: Mapping[Key, TargetAnswers],
    tokens: Mapping[Key, TokenFindings],
    confidence: float,
) -> tuple[dict[str, Any], ...]:
    """Rows of `parity.hops`: the routed system and each branch, for every hop.

    Per target from torch to the exported fp32 graph and from there to int8; without an fp32 graph straight to int8.
    Then each two targets at the same precision. A branch is measured on the images that the reference sends to it,
    whatever the systems' own routers say, so that a flip of the router is no fault of a branch.

    Args:
        reference: torch's answers, unrounded where they are at hand.
        answers: per target and precision.
        tokens: likewise, as far as it was measured.
        confidence: of each of a drop's bounds.
    """
    rows: list[dict[str, Any]] = []
    for before, after in _steps(tuple(answers)):
        first = reference if before is None else answers[before]
        name = REFERENCE if before is None else " ".join(before)
        for path in (ROUTED, *images.branches):
            measured = _measured(images, path, first, answers[after], confidence)
            overlap = _overlap(path, tokens.get(after))
            ends = {"from": name, "to": " ".join(after), "target": after[0], "precision": after[1], "path": path}
            rows.append(ends | measured | overlap)
    return tuple(rows)


def weakest(hops: Iterable[Mapping[str, Any]], target: str, precision: str) -> Mapping[str, Any] | None:
    """Of the hops from torch to a target at a precision, the one on which a branch keeps the fewest answers.

    None where no hop was measured, or every branch keeps all.
    """
    way = [h for h in hops if h["target"] == target and h["from"] in (REFERENCE, f"{target} fp32")]
    rows = [h for h in way if h["path"] != ROUTED and h["images"] and h["precision"] in ("fp32", precision)]
    worst = min(rows, key=lambda h: h["agreement"], default=None)
    return worst if worst is not None and worst["agreement"] < 1 else None


def _steps(systems: tuple[Key, ...]) -> Iterator[tuple[Key | None, Key]]:
    """Pairs of systems, None being torch: all exports, all quantizations, then target against target."""
    for precision in ("fp32", "int8"):
        for target, _ in (s for s in systems if s[1] == precision):
            exported = (target, "fp32") if precision == "int8" and (target, "fp32") in systems else None
            yield exported, (target, precision)
    for precision in ("fp32", "int8"):
        for first, second in itertools.combinations([s for s in systems if s[1] == precision], 2):
            if first[0] != second[0]:
                yield first, second


def _measured(images: Images, path: str, before: TargetAnswers, after: TargetAnswers, confidence: float) -> dict[str, Any]:
    if path == ROUTED:
        first, second, labels = before.logits, after.logits, images.labels
        router = {"router_agreement": float((before.branch == after.branch).mean())} if len(images.branches) > 1 else {}
    else:
        own = images.routed == images.branches.index(path)
        first, second, labels = before.on_reference_route[own], after.on_reference_route[own], images.labels[own]
        router = {}
    if not len(labels):
        nothing = ("top1_before", "top1_after", "drop_pp", "drop_lower_pp", "drop_upper_pp", "p_value", "agreement")
        return {"images": 0} | dict.fromkeys((*nothing, "mean_kl", "logit_cosine"))
    counts = counted(first.argmax(-1), second.argmax(-1), labels)
    bounds = paired_difference(counts.lost, counts.won, counts.images, confidence)
    divergence, cosine = _closeness(first, second)
    return {
        "images": counts.images,
        "top1_before": float((first.argmax(-1) == labels).mean()),
        "top1_after": float((second.argmax(-1) == labels).mean()),
        "drop_pp": 100 * (counts.lost - counts.won) / counts.images,
        "drop_lower_pp": 100 * bounds.lower,
        "drop_upper_pp": 100 * bounds.upper,
        "p_value": mcnemar(counts.lost, counts.won),
        "agreement": counts.same / counts.images,
        "mean_kl": divergence,
        "logit_cosine": cosine,
        **router,
    }


def _closeness(before: npt.NDArray[np.floating[Any]], after: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Mean Kullback-Leibler divergence of the second's probabilities from the first's, nats, and mean cosine of logits."""
    divergence = cosine = 0.0
    for start in range(0, len(before), _CHUNK):
        x, y = (a[start : start + _CHUNK].astype(np.float64) for a in (before, after))
        p, q = _log_softmax(x), _log_softmax(y)
        divergence += float((np.exp(p) * (p - q)).sum())
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosine += float(((x * y).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)).sum())
    return max(0.0, divergence / len(before)), cosine / len(before)


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def _overlap(path: str, found: TokenFindings | None) -> dict[str, Any]:
    if path == ROUTED:
        return {"token_overlap": None, "token_overlap_not_measured": "each branch has its own, in its own row"}
    if found is None:
        return {"token_overlap": None, "token_overlap_not_measured": NOT_TRACED}
    if path not in found.overlap:
        return {"token_overlap": None, "token_overlap_not_measured": found.not_measured[path]}
    return {"token_overlap": found.overlap[path], "token_images": found.images[path]}
