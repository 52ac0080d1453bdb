"""Which images a system answers otherwise than the reference, and what changed each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.parity.answers import TargetAnswers, TokenFindings
from athe_export.parity.hops import Images

WORST_CLASSES = 10
ROUTER, TOKENS, QUANTIZATION = "router_flip", "token_choice", "quantization"
NOT_TOLD_APART = "told apart from quantization where a bundle is built: that takes torch"


def attribute(
    images: Images,
    ids: npt.NDArray[np.int64],
    expected: npt.NDArray[np.int64],
    found: TargetAnswers,
    tokens: TokenFindings | None,
) -> dict[str, Any]:
    """The `attribution` of a target.

    One cause an image, the first that holds: the router sent it to another branch; its branch keeps other tokens, and
    torch with those tokens does not give its own answer either; all else is quantization of the branch that it took.

    Args:
        ids: of the gate's images, int64 [n].
        expected: the routed reference's top classes, int64 [n].
        tokens: None where torch was not at hand; token choice then counts as quantization, and that is said.
    """
    labels, answer = images.labels, found.answer
    flipped = found.branch != images.routed
    by_tokens = np.zeros(len(labels), np.bool_) if tokens is None else tokens.decisive & ~flipped
    lost = (expected == labels) & (answer != labels)
    won = (expected != labels) & (answer == labels)
    told = lost & ~flipped & ~by_tokens
    lost_by: dict[str, Any] = {
        ROUTER: int((lost & flipped).sum()),
        TOKENS: None if tokens is None else int((lost & by_tokens).sum()),
        QUANTIZATION: {name: int((told & (found.branch == i)).sum()) for i, name in enumerate(images.branches)},
    }
    return {
        "lost": int(lost.sum()),
        "won": int(won.sum()),
        "lost_by": lost_by,
        **({"token_choice_not_measured": NOT_TOLD_APART} if tokens is None else {}),
        "worst_classes": _worst_classes(labels, lost, won),
        "changed": [
            {
                "id": int(ids[i]),
                "label": int(labels[i]),
                "cause": ROUTER if flipped[i] else TOKENS if by_tokens[i] else QUANTIZATION,
                "before": {"branch": images.branches[images.routed[i]], "answer": int(expected[i])},
                "after": {"branch": images.branches[found.branch[i]], "answer": int(answer[i])},
            }
            for i in np.flatnonzero(answer != expected)
        ],
    }


def said(target: str, attribution: dict[str, Any]) -> str:
    """One line for a person: what lost how many images."""
    by = attribution["lost_by"]
    parts = [f"{by[ROUTER]} by the router", *([f"{by[TOKENS]} by the choice of tokens"] if by[TOKENS] is not None else [])]
    parts += [f"{count} by quantization of {branch}" for branch, count in by[QUANTIZATION].items()]
    return f"{target} lost {attribution['lost']} images and won {attribution['won']}: {', '.join(parts)}"


def _worst_classes(
    labels: npt.NDArray[np.int64], lost: npt.NDArray[np.bool_], won: npt.NDArray[np.bool_]
) -> list[dict[str, int]]:
    """The classes that lost most, at most ten; none that lost nothing."""
    size = int(labels.max()) + 1
    images, losses, gains = (np.bincount(x, minlength=size) for x in (labels, labels[lost], labels[won]))
    order = [int(c) for c in np.lexsort((gains, -losses))[:WORST_CLASSES] if losses[c]]
    return [{"label": c, "images": int(images[c]), "lost": int(losses[c]), "won": int(gains[c])} for c in order]
