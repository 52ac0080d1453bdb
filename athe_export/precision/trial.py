"""One way to quantize a target: some layers float, the rest int8, measured on held-out images against the fp32 graphs.

An image goes to the branch that the reference's router sends it to, in every trial: what is judged is the branches' layers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.data.source import Progress
from athe_export.errors import ExportError
from athe_export.parity.answers import counted
from athe_export.parity.limits import FAIL, INCONCLUSIVE, PASS, Counts
from athe_export.parity.statistics import Interval, images_needed
from athe_export.precision.latency import Pair, slowdown
from athe_export.precision.subject import Clock, Subject
from athe_export.runtime.engines import Session

Answers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What a trial has to hold.

    `max_top1_drop_pp` on the upper one-sided bound at `confidence`, in percentage points; `max_slowdown` on the measured
    time of an image over that with every layer int8.
    """

    max_top1_drop_pp: float
    max_slowdown: float
    confidence: float


@dataclass(frozen=True)
class Trial:
    """What came of keeping some layers float.

    `counts` are of fp32's answers on the held-out images against int8's. `drop_pp` holds one-sided bounds of what is lost of
    top-1, `verdict` is that of the drop alone, `images_needed` is how many images would decide it if the shares stay (None:
    decided). With an `error` there is no such graph, and nothing was measured.
    """

    keep_float: tuple[str, ...]
    counts: Counts
    drop_pp: Interval
    verdict: str
    images_needed: int | None
    slowdown: float | None
    seconds: float
    error: str | None = None

    def holds(self, limits: Limits) -> bool:
        """Whether it is surely inside both limits."""
        return self.verdict == PASS and self.slowdown is not None and self.slowdown <= limits.max_slowdown

    def to_json(self) -> dict[str, Any]:
        measured, counts = self.error is None, self.counts
        return {
            "keep_float": list(self.keep_float),
            "verdict": self.verdict if measured else None,
            "drop_pp": counts.measured_drop_pp if measured else None,
            "drop_lower_pp": self.drop_pp.lower if measured else None,
            "drop_upper_pp": self.drop_pp.upper if measured else None,
            "images": counts.images,
            "images_needed": self.images_needed,
            "lost": counts.lost,
            "won": counts.won,
            "agreement": counts.measured_agreement if measured else None,
            "slowdown": self.slowdown,
            "seconds": round(self.seconds, 2),
            "error": self.error,
        }


class Bench:
    """Runs trials of one target: graphs that a branch has in common with an earlier trial are not made again."""

    def __init__(self, subjects: Sequence[Subject], limits: Limits, progress: Progress) -> None:
        self.subjects, self.limits, self._progress = tuple(subjects), limits, progress
        self._trials: dict[frozenset[str], Trial] = {}
        self._answers: dict[tuple[str, tuple[str, ...]], Answers] = {}
        self._base: dict[str, Session] = {}  # every layer int8, for the slowdown
        self._labels = np.concatenate([s.labels for s in self.subjects])
        self.images = len(self._labels)
        self.shares = {s.role: len(s.labels) / self.images for s in self.subjects}

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All so far, in the order they were made in."""
        return tuple(self._trials.values())

    def leaves_int8(self, keep: Iterable[str]) -> bool:
        """Whether every branch keeps a layer in int8, without which a build has no int8 graph of it."""
        names = set(keep)
        return all(len(s.kept(names)) < len(s.layers) for s in self.subjects)

    def trial(self, keep: Iterable[str], clock: Clock) -> Trial:
        """Measures one set of layers kept float; one that was measured before is not measured again.

        Raises:
            TimeUp: before it is done, where the clock says so; nothing is recorded of it.
        """
        names = frozenset(keep)
        if names not in self._trials:
            self._trials[names] = self._measured(tuple(keep), clock)
        return self._trials[names]

    def _measured(self, keep: tuple[str, ...], clock: Clock) -> Trial:
        start, number = time.monotonic(), len(self._trials) + 1
        step = f"trial {number}, {len(keep)} layers kept float"
        fp32, int8 = [], []
        sessions: dict[str, Session] = {}
        try:
            for subject in self.subjects:
                clock.check()
                sessions[subject.role] = session = self._session(subject, keep)
                fp32.append(self._answered(subject, subject.fp32, subject.layers, clock, f"{step}: {subject.role} fp32"))
                int8.append(self._answered(subject, session, subject.kept(keep), clock, f"{step}: {subject.role}"))
        except ExportError as err:
            seconds = time.monotonic() - start
            nothing = Counts(self.images, 0, 0, 0)
            return Trial(keep, nothing, Interval(-100.0, 100.0), FAIL, None, None, seconds, str(err))
        counts = counted(np.concatenate(fp32), np.concatenate(int8), self._labels)
        verdict = self._verdict(counts)
        needed = None
        if verdict == INCONCLUSIVE:
            needed = images_needed(self.images, lambda factor: self._verdict(counts, factor) != INCONCLUSIVE)
        drop, slower = counts.drop_pp(self.limits.confidence), self._slowdown(sessions)
        return Trial(keep, counts, drop, verdict, needed, slower, time.monotonic() - start)

    def _session(self, subject: Subject, keep: tuple[str, ...]) -> Session:
        if not subject.kept(keep):
            if subject.role not in self._base:
                self._base[subject.role] = subject.session(())
            return self._base[subject.role]
        return subject.session(keep)

    def _answered(self, subject: Subject, session: Session, kept: tuple[str, ...], clock: Clock, step: str) -> Answers:
        """Top class of each image, int64 [n]."""
        key = subject.role, kept
        if key not in self._answers:
            self._answers[key] = subject.logits(session, clock, self._progress, step).argmax(-1)
        return self._answers[key]

    def _verdict(self, counts: Counts, factor: float = 1) -> str:
        """On the drop, as if there were `factor` times the images."""
        drop, most = counts.drop_pp(self.limits.confidence, factor), self.limits.max_top1_drop_pp
        return PASS if drop.upper <= most else FAIL if drop.lower > most else INCONCLUSIVE

    def _slowdown(self, sessions: dict[str, Session]) -> float | None:
        """None where there is no graph with every layer int8 to hold it against."""
        pairs = []
        for subject in self.subjects:
            if subject.role not in self._base:
                return None
            image = next(iter(subject.images()))
            pairs.append(Pair(sessions[subject.role], self._base[subject.role], image, self.shares[subject.role]))
        return slowdown(pairs)
