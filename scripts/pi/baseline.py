"""Instruction counts held against those that are committed, by version of the engine.

The file is one JSON object: the name of a bundle, then `<engine> <version>`, then a row's name and its count. A version that
is counted anew replaces its own rows and no other's, so that versions can be compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

GROWTH = 2  # a row may cost so many percent more than in the baseline
Counts = dict[str, int]
Baseline = dict[str, dict[str, Counts]]


@dataclass(frozen=True)
class Compared:
    """One row now and in the baseline; `before` is None where the baseline lacks it, `now` where it was not counted."""

    engine: str
    row: str
    before: int | None
    now: int | None

    @property
    def growth(self) -> float | None:
        return None if self.before is None or self.now is None else self.now / self.before - 1

    @property
    def failed(self) -> bool:
        return self.before is not None and self.now is not None and 100 * self.now > (100 + GROWTH) * self.before

    @property
    def undecided(self) -> bool:
        return self.growth is None

    def said(self) -> str:
        if self.before is None:
            return f"{self.engine} {self.row}: {self.now:,} instructions, no baseline of this version"
        if self.growth is None:
            return f"{self.engine} {self.row}: in the baseline, and not counted"
        return f"{self.engine} {self.row}: {self.before:,} to {self.now:,} instructions, {self.growth:+.2%}"


def read_baseline(path: Path) -> Baseline:
    """Raises ValueError where the file is not such an object."""
    found = json.loads(path.read_text()) if path.exists() else {}
    whole = isinstance(found, dict) and all(
        isinstance(n, int) and n > 0 for engines in found.values() for rows in engines.values() for n in rows.values()
    )
    if not whole:
        raise ValueError(f"{path} is not a baseline: bundle, engine and version, row, a count above zero")
    return found


def compare(baseline: Baseline, bundle: str, counted: dict[str, Counts]) -> list[Compared]:
    """Every row that was counted, by engine, and those of the same versions in the baseline that were not."""
    found = []
    for engine, now in counted.items():
        before = baseline.get(bundle, {}).get(engine, {})
        found += [Compared(engine, row, before.get(row), now.get(row)) for row in {**now, **before}]
    return found


def write_baseline(path: Path, baseline: Baseline, bundle: str, counted: dict[str, Counts]) -> None:
    """Replaces the rows of the versions that were counted."""
    merged = baseline | {bundle: baseline.get(bundle, {}) | counted}
    path.write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n")
