"""What a run writes about itself: log.csv with a line an epoch, curves.svg drawn from it, and lines while it goes."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athe_export.data.source import Progress
from athe_export.training.curves import draw_curves

LINE_SECONDS = 30.0
_FIRST = ("phase", "epoch", "of", "image_size", "learning_rate", "loss", "images_per_second", "minutes")
Report = Callable[[str], None]


class TrainingLog:
    """log.csv and curves.svg in `folder`; `paths` are the columns of held-out top-1."""

    def __init__(self, folder: Path, paths: tuple[str, ...]) -> None:
        self.file, self.curves, self._columns = folder / "log.csv", folder / "curves.svg", (*_FIRST, *paths)
        self._paths = paths

    def rows(self) -> list[dict[str, str]]:
        """All lines so far, oldest first."""
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def add(self, row: dict[str, Any]) -> None:
        """Adds an epoch. One that a kill left logged but not saved is trained again, and then stands here once."""
        same = (row["phase"], str(row["epoch"]))
        rows = [r for r in self.rows() if (r["phase"], r["epoch"]) != same]
        rows.append({name: str(value) for name, value in row.items()})
        staging = self.file.with_suffix(".part")
        with staging.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        staging.replace(self.file)
        self.curves.write_text(draw_curves(rows, self._paths), encoding="utf-8")


class Meter:
    """Speed within an epoch, and a line every half minute with what is left of the phase."""

    def __init__(self, title: str, steps: int, steps_after: int, report: Report, progress: Progress) -> None:
        self._title, self._steps, self._after = title, steps, steps_after
        self._report, self._progress = report, progress
        self._began = self._said = time.monotonic()
        self._images = self._done = 0

    @property
    def speed(self) -> float:
        """Images a second since this process began with the epoch."""
        return self._images / max(1e-9, time.monotonic() - self._began)

    def step(self, done: int, images: int, loss: float | None) -> None:
        """`done` of the epoch's steps are done, the last of them on `images` images; `loss` is the epoch's mean so far."""
        self._images, self._done = self._images + images, self._done + 1
        self._progress(self._title, done, self._steps)
        now = time.monotonic()
        if now - self._said > LINE_SECONDS:
            self._said = now
            left = (now - self._began) / self._done * (self._steps - done + self._after)
            shown = "" if loss is None else f"loss {loss:.4f}  "
            pace = f"{self.speed:.0f} images/s  {duration(left)} left in this phase"
            self._report(f"{self._title}  step {done}/{self._steps}  {shown}{pace}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: `2 h 05 min`, `3 min`, `40 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
