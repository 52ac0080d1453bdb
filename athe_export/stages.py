"""The stages of a build: said, and timed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol


class Watcher(Protocol):
    """Where a build tells what it is doing."""

    def stage(self, name: str) -> None: ...

    def progress(self, step: str, done: int, total: int) -> None: ...


class StageTimer:
    """Says and times the stages of a build."""

    def __init__(self, watch: Watcher) -> None:
        self.watch = watch
        self.seconds: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.watch.stage(name)
        start = time.monotonic()
        yield
        self.seconds.append((name, time.monotonic() - start))
