"""The loop of live use: an image from a source, its answer, told at once; until told to stop. Nothing grows with time."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from athe_export.errors import ImageError
from athe_export.preprocessing import Pixels
from athe_export.runtime.predictor import Prediction

_WAIT_S = 0.2  # for an image, before the clock and the signals are looked at again


@dataclass(frozen=True)
class Item:
    """An image to classify: a file, or RGB pixels uint8 [height, width, 3]; `name` and, of a camera, `frame` tell it."""

    name: str
    image: Path | Pixels
    frame: int | None = None


class Ended(Exception):
    """A source that has an end has reached it."""


class Source(Protocol):
    """Where images come from."""

    def next(self, wait_s: float) -> Item | None:
        """The next image; None where none came for so long.

        Raises:
            Ended: there will be no more.
            EnvironmentFailure: the source is gone.
        """

    def refused(self, item: Item) -> bool:
        """Told that an image could not be read; False where it may still be in the making and comes again."""

    def close(self) -> None:
        """Lets go of the source."""

    @property
    def skipped(self) -> int:
        """Frames that were passed over, since newer ones had come."""


class Classifies(Protocol):
    def predict(self, image: Path | str | Pixels, branch: str = "auto", top: int = 5) -> Prediction: ...


class Stop:
    """Whether to go on: not after SIGTERM or SIGINT, and not when the time is over. The second signal ends the program."""

    def __init__(self, duration_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._duration_s = clock, duration_s
        self._end: float | None = None
        self._why: str | None = None

    def begin(self) -> None:
        """The time runs from now on."""
        self._end = None if self._duration_s is None else self._clock() + self._duration_s

    @property
    def why(self) -> str | None:
        """`duration` or the signal's name; None while there is no reason."""
        if self._why is None and self._end is not None and self._clock() >= self._end:
            self._why = "duration"
        return self._why

    def wait_s(self) -> float:
        """How long to wait for an image."""
        return _WAIT_S if self._end is None else min(_WAIT_S, max(0.0, self._end - self._clock()))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the two signals meanwhile; only a program's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self._why in ("SIGTERM", "SIGINT"):
            raise KeyboardInterrupt
        self._why = signal.Signals(number).name


@dataclass
class Summary:
    """What became of the images, counted.

    Attributes:
        by_branch: images that each branch has answered.
        broken: that could not be read.
        skipped: frames that were passed over.
        ended: `end` of the source, `duration`, or the signal's name.
    """

    by_branch: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    skipped: int = 0
    ms: float = 0.0
    slowest_ms: float = 0.0
    seconds: float = 0.0
    ended: str = ""

    @property
    def images(self) -> int:
        return sum(self.by_branch.values())

    def count(self, found: Prediction) -> None:
        self.by_branch[found.branch] = self.by_branch.get(found.branch, 0) + 1
        self.ms, self.slowest_ms = self.ms + found.ms, max(self.slowest_ms, found.ms)

    def to_json(self) -> dict[str, Any]:
        """Milliseconds are of one image."""
        mean = round(self.ms / self.images, 3) if self.images else None
        counts = {"images": self.images, "by_branch": self.by_branch, "broken": self.broken, "skipped": self.skipped}
        times = {"mean_ms": mean, "slowest_ms": round(self.slowest_ms, 3), "seconds": round(self.seconds, 3)}
        return {**counts, **times, "ended": self.ended}


def classify_live(
    predictor: Classifies,
    source: Source,
    stop: Stop,
    tell: Callable[[Item, Prediction | ImageError], None],
    branch: str = "auto",
    top: int = 5,
    summary: Summary | None = None,
) -> Summary:
    """Classifies what the source gives until it ends or `stop` says so; `tell` gets every answer, and every image that could
    not be read.

    Args:
        summary: counted into, so that it is there where the source fails.

    Raises:
        EnvironmentFailure: the source is gone.
        UsageError: there is no such branch.
    """
    summary, start = summary or Summary(), time.monotonic()
    stop.begin()
    try:
        while (why := stop.why) is None:
            item = source.next(stop.wait_s())
            if item is not None:
                _classify(predictor, source, item, tell, branch, top, summary)
        summary.ended = why
    except Ended:
        summary.ended = "end"
    finally:
        summary.seconds, summary.skipped = time.monotonic() - start, source.skipped
    return summary


def _classify(
    predictor: Classifies,
    source: Source,
    item: Item,
    tell: Callable[[Item, Prediction | ImageError], None],
    branch: str,
    top: int,
    summary: Summary,
) -> None:
    try:
        found = predictor.predict(item.image, branch, top)
    except ImageError as err:
        if source.refused(item):
            summary.broken += 1
            tell(item, err)
        return
    summary.count(found)
    tell(item, found)
