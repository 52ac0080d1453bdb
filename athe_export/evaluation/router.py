"""How well a router routes: what it chose against what was needed, against the judge of the subset, and its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.evaluation.answers import Answers
from athe_export.evaluation.intervals import mean_of_images
from athe_export.evaluation.subset import BalancedSubset
from athe_export.runtime.routing import difficulty_target

NONE_RIGHT = "none is right"
_BINS = 10


def confusion(branches: Sequence[str], answers: Answers) -> list[dict[str, Any]]:
    """Images by the easiest branch that is right (`needs`) and the branch that they were sent to (`sent`)."""
    correct, routed = answers.correct(), answers.routed()
    needs = np.where(correct.any(1), correct.argmax(1), len(branches))
    names = [*branches, NONE_RIGHT]
    return [
        {
            "needs": name,
            "images": int((needs == at).sum()),
            "sent": {branch: int(((needs == at) & (routed == to)).sum()) for to, branch in enumerate(branches)},
        }
        for at, name in enumerate(names)
    ]


def against_judge(branches: Sequence[str], answers: Answers, subset: BalancedSubset | None) -> list[dict[str, Any]]:
    """The same by the halves of the balanced subset; nothing without one."""
    if subset is None:
        return []
    routed, found = answers.routed(), []
    for name, ids in (("simple", subset.simple), ("complex", subset.complex)):
        own = routed[answers.among(ids)]
        sent = {branch: int((own == to).sum()) for to, branch in enumerate(branches)}
        found.append({"judged": name, "images": len(own), "sent": sent})
    return found


def calibration(answers: Answers, bins: int = _BINS) -> list[dict[str, Any]]:
    """The images in order of their score in bins of equal size: what the router said, and what was so.

    `needed` is the share of a bin for which a harder branch than the easiest was needed, with its 95% interval; with more
    than two branches, the mean of their positions from 0 to 1. `easiest` and `hardest` are those branches' top-1.
    """
    needed = difficulty_target(answers.correct()).astype(np.float64)
    order = np.argsort(answers.scores, kind="stable")
    found = []
    for part in np.array_split(order, min(bins, len(order))):
        correct: npt.NDArray[np.float64] = answers.correct()[part].astype(np.float64)
        found.append(
            {
                "images": len(part),
                "score": float(answers.scores[part].mean()),
                "needed": mean_of_images(needed[part]).to_json(),
                "easiest": float(correct[:, 0].mean()),
                "hardest": float(correct[:, -1].mean()),
            }
        )
    return found
