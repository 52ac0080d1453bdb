"""What a system answered on the gate's images, and two systems' answers counted against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from athe_export.parity.limits import Counts


@dataclass(frozen=True)
class TargetAnswers:
    """What a system did on the gate's images: branch position of each, int64 [n], and logits float32 [n, classes].

    `matched` are the logits, float32 [n, classes], of the branch that the reference takes: the same, but where the
    router decided otherwise. None: nowhere did it.
    """

    branch: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    precision: str = "int8"
    matched: npt.NDArray[np.float32] | None = None

    @property
    def answer(self) -> npt.NDArray[np.int64]:
        """Top class of each image, int64 [n]."""
        return self.logits.argmax(-1)

    @property
    def on_reference_route(self) -> npt.NDArray[np.float32]:
        """Logits of the branch that the reference takes, float32 [n, classes]."""
        return self.logits if self.matched is None else self.matched


@dataclass(frozen=True)
class TokenFindings:
    """What a system's choice of tokens came to, measured where torch is at hand.

    Attributes:
        overlap: per branch, mean share of the tokens that torch keeps too, on the first images routed to it.
        not_measured: per branch without an overlap, why.
        images: per branch, how many images its overlap is of.
        decisive: bool [n]: torch, made to keep this system's tokens, does not give its own answer any more.
    """

    overlap: Mapping[str, float]
    not_measured: Mapping[str, str]
    images: Mapping[str, int]
    decisive: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def counted(expected: npt.NDArray[np.int64], answer: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Counts:
    """Top classes of two systems on the same n images, int64 [n] each, with the images' labels."""
    before, after = expected == labels, answer == labels
    return Counts(len(labels), int((before & ~after).sum()), int((~before & after).sum()), int((expected == answer).sum()))
