"""One branch of one target, as something to quantize in different ways and to hold against its own fp32 graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from athe_export.data.source import Progress
from athe_export.preprocessing import GraphInput
from athe_export.runtime.engines import Session

Logits = npt.NDArray[np.float32]
LEAST_DB = -100.0


class TimeUp(Exception):
    """The minutes that were given are over; caught by whoever gave them."""


@dataclass(frozen=True)
class Clock:
    """Minutes that a piece of work may take, counted from when the clock is made; None: as long as it takes."""

    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raises TimeUp where the time is over."""
        if self.minutes is not None and time.monotonic() - self.started >= 60 * self.minutes:
            raise TimeUp


@dataclass(frozen=True)
class Subject:
    """A branch whose layers can be int8 or float.

    Attributes:
        role: the branch's name.
        layers: torch module names of the layers that become int8 unless they are kept float, in the order they run in.
        fp32: session of the exported graph.
        quantized: makes the int8 graph in which the layers it is given stay float, and opens it. A name that the branch
            has no layer of is passed over. Raises ExportError where there is no such graph.
        images: the branch's held-out images, as its graphs take them, anew at each call.
        labels: of those images, int64 [n], n at least 1.
    """

    role: str
    layers: tuple[str, ...]
    fp32: Session
    quantized: Callable[[tuple[str, ...]], Session]
    images: Callable[[], Iterable[GraphInput]]
    labels: npt.NDArray[np.int64]

    def kept(self, keep: Iterable[str]) -> tuple[str, ...]:
        """Those of `keep` that are layers here, in the order they run in."""
        names = set(keep)
        return tuple(layer for layer in self.layers if layer in names)

    def session(self, keep: Iterable[str]) -> Session:
        """The graph in which `keep` stays float; the fp32 graph where that is every layer."""
        kept = self.kept(keep)
        return self.fp32 if len(kept) == len(self.layers) else self.quantized(kept)

    def logits(self, session: Session, clock: Clock, progress: Progress, step: str) -> Logits:
        """What a session answers on the images, float32 [n, classes].

        Raises:
            TimeUp: before the next image, where the clock says so.
        """
        return outputs(session, self.images(), len(self.labels), clock, progress, step)


def outputs(
    session: Session, images: Iterable[GraphInput], count: int, clock: Clock, progress: Progress, step: str
) -> npt.NDArray[np.float32]:
    """A graph's outputs on `count` images one after the other, float32 [n, classes], of a router [n, 1].

    Raises:
        TimeUp: before the next image, where the clock says so.
    """
    rows: list[npt.NDArray[np.float32]] = []
    for image in images:
        clock.check()
        rows.append(session.run(image).reshape(-1))
        progress(step, len(rows), count)
    return np.stack(rows)


@dataclass(frozen=True)
class Distance:
    """How far a quantized graph's logits are from the fp32 graph's on the same images.

    `sqnr_db` is the ratio of signal to quantization noise, 10 log10(sum of squared fp32 logits over sum of squared
    differences); None where there is no difference at all. `agreement` is the share of images with the same answer.
    """

    sqnr_db: float | None
    agreement: float

    @property
    def noise(self) -> float:
        """Power of the noise over that of the signal."""
        return 0.0 if self.sqnr_db is None else float(10 ** (-self.sqnr_db / 10))


def distance(expected: Logits, found: Logits) -> Distance:
    """Of logits float32 [n, classes], n at least 1; a ratio below -100 dB, or of values that are not finite, is -100."""
    signal = float((expected.astype(np.float64) ** 2).sum())
    noise = float(((expected.astype(np.float64) - found.astype(np.float64)) ** 2).sum())
    agreement = float((expected.argmax(-1) == found.argmax(-1)).mean())
    if noise == 0:
        return Distance(None, agreement)
    ratio = signal / noise if np.isfinite(noise) else 0.0
    return Distance(max(LEAST_DB, float(10 * np.log10(ratio))) if ratio else LEAST_DB, agreement)
