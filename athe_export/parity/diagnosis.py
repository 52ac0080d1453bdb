"""Faults that a gate can name from answers alone: classes in another order, branches in each other's place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.parity.answers import TargetAnswers
from athe_export.parity.limits import PASS, LimitResult
from athe_export.parity.reference import Reference
from athe_export.parity.statistics import proportion


def class_shift(
    expected: npt.NDArray[np.int64], answer: npt.NDArray[np.int64], classes: int, confidence: float
) -> int | None:
    """By how many classes the answers are off, if more of them are off by that one number than are right; else None.

    The classic slip: one side counts a background class, or the names are sorted otherwise. Bounds are Wilson's, each at
    a confidence that allows for every number of classes being tried. It has to show in most classes of three or more: a
    model that prefers one answer is off by one number on images of one class.
    """
    found = (answer - expected) % classes
    counts = np.bincount(found, minlength=classes)
    shift = int(counts[1:].argmax()) + 1
    sure = 1 - (1 - confidence) / classes
    right, off = (proportion(int(counts[s]), len(expected), sure) for s in (0, shift))
    seen, off_by_class, right_by_class = (
        np.bincount(expected[where], minlength=classes) for where in (found >= 0, found == shift, found == 0)
    )
    shifted = int((off_by_class > right_by_class).sum())
    return shift if off.lower > right.upper and shifted >= 3 and 2 * shifted > int((seen > 0).sum()) else None


def swapped_branches(
    reference: Reference, routed: npt.NDArray[np.int64], found: TargetAnswers, names: tuple[str, ...]
) -> tuple[str, ...]:
    """A line for each branch whose logits lie nearer to those of another of the reference's branches."""
    lines = []
    for index, name in enumerate(names):
        own = routed == index
        if not own.any():
            continue
        logits = found.on_reference_route[own].astype(np.float32)
        distances = [float(np.abs(logits - other[own].astype(np.float32)).mean()) for other in reference.logits]
        nearest = int(np.argmin(distances))
        if nearest != index:
            lines.append(f"branch {name} answers as the reference's {names[nearest]} does: they may have been swapped")
    return tuple(lines)


def noise_said(target: str, limits: Iterable[LimitResult]) -> tuple[str, ...]:
    """A line where branches are noisier than sound int8: every one of them, and the calibration is to blame; else they
    themselves are."""
    rows = [limit for limit in limits if limit.name.endswith(".min_sqnr_db")]
    noisy = [limit.name.split(".")[-2] for limit in rows if limit.verdict != PASS]
    if not noisy:
        return ()
    if len(noisy) == len(rows) > 1:
        return (f"{target}: int8 ranges of all branches do not fit these images: was it calibrated on others?",)
    return (f"{target}: int8 scales or ranges of {', '.join(noisy)} do not fit these images, unlike those of the rest",)


def said_of_hop(hop: Mapping[str, Any]) -> str:
    """One line for a person: what a branch loses on a hop."""
    return (
        f"from {hop['from']} to {hop['to']} branch {hop['path']} keeps {100 * hop['agreement']:.1f}% of its answers and "
        f"drops {hop['drop_pp']:.2f} pp, on {hop['images']:,} images"
    )
