"""Load and idle in turn, in a pattern that a power meter's log shows: what `bench --power-log` runs after its times.

Its begin and its end are a Barker code of 13 chips (Barker, Group synchronizing of binary digital systems, 1953), load for
one and idle for nought. Between them every row has a block of steady load in every round, in random order, with idle of
random length around it. So neither a shift by a chip nor one by a block fits the log, and each run has a pattern of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from athe_export.bench.protocol import Clock, Query
from athe_export.errors import UsageError

BARKER = (1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1)
RowName = tuple[str, str, str, str]  # system, kind, target, precision


@dataclass(frozen=True)
class PowerPlan:
    """How long load and idle last, in seconds.

    Attributes:
        chip_s: a chip of the code.
        settle_s: of load and of idle at either side that is not counted: power has not settled yet, or clocks differ.
        load_s: a block of load that is counted.
        idle_s: idle between two blocks that is counted, at least; half as much more at most.
        rounds: blocks of every row.
    """

    chip_s: float
    settle_s: float
    load_s: float
    idle_s: float
    rounds: int

    @property
    def coarsest_s(self) -> float:
        """Seconds between samples with which a log still tells load from idle."""
        return min(self.settle_s, self.chip_s / 2)

    def seconds(self, rows: int) -> float:
        """What the pattern takes, roughly."""
        code = 2 * (len(BARKER) + 2) * self.chip_s
        return code + self.rounds * rows * (4 * self.settle_s + self.load_s + 1.25 * self.idle_s)


QUICK_POWER = PowerPlan(chip_s=1.0, settle_s=0.5, load_s=4.0, idle_s=3.0, rounds=5)
FULL_POWER = PowerPlan(chip_s=3.0, settle_s=2.0, load_s=12.0, idle_s=8.0, rounds=8)


@dataclass(frozen=True)
class Block:
    """A row's load from `start` to `end`, of which `counted_from` to `counted_to` is counted, with so many images."""

    row: int
    start: float
    counted_from: float
    counted_to: float
    end: float
    images: int


@dataclass(frozen=True)
class Timeline:
    """What ran when, in seconds since the pattern began.

    Attributes:
        began: Unix time of that.
        plan: as it was run.
        rows: what was run.
        code: load of the two codes, (start, end) in order.
        blocks: the rows' load in order.
        seconds: when the pattern ended.
    """

    began: float
    plan: PowerPlan
    rows: tuple[RowName, ...]
    code: tuple[tuple[float, float], ...]
    blocks: tuple[Block, ...]
    seconds: float

    @property
    def loads(self) -> list[tuple[float, float]]:
        """All load, (start, end) in order."""
        return sorted([*self.code, *((b.start, b.end) for b in self.blocks)])

    def to_json(self) -> dict[str, Any]:
        """Times to the microsecond."""

        def rounded(values: dict[str, Any]) -> dict[str, Any]:
            return {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}

        return {
            "began": self.began,
            "seconds": round(self.seconds, 6),
            "plan": asdict(self.plan),
            "rows": [dict(zip(("system", "kind", "target", "precision"), row, strict=True)) for row in self.rows],
            "code": [[round(a, 6), round(b, 6)] for a, b in self.code],
            "blocks": [rounded(asdict(block)) for block in self.blocks],
        }


def timeline_from(content: Any, where: str) -> Timeline:
    """A timeline from what `to_json` has made.

    Raises:
        UsageError: it is something else.
    """
    try:
        found = Timeline(
            float(content["began"]),
            PowerPlan(
                **{name: float(value) for name, value in content["plan"].items()} | {"rounds": content["plan"]["rounds"]}
            ),
            tuple((str(r["system"]), str(r["kind"]), str(r["target"]), str(r["precision"])) for r in content["rows"]),
            tuple((float(a), float(b)) for a, b in content["code"]),
            tuple(_block(block) for block in content["blocks"]),
            float(content["seconds"]),
        )
        sound = all(b.images > 0 and b.start < b.counted_from < b.counted_to < b.end for b in found.blocks)
        sound = sound and all([b.row for b in found.blocks].count(row) > 1 for row in range(len(found.rows)))
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound or not found.rows or not found.code:
        raise UsageError(
            "holds no pattern of load that could be joined with a log",
            where=where,
            remedy="give the file that `athe-export bench BUNDLE --power-log LOG` has kept or printed with --json",
        )
    return found


def _block(content: Mapping[str, Any]) -> Block:
    start, counted_from, counted_to, end = (float(content[n]) for n in ("start", "counted_from", "counted_to", "end"))
    return Block(int(content["row"]), start, counted_from, counted_to, end, int(content["images"]))


def run_pattern(
    rows: Mapping[RowName, Query],
    plan: PowerPlan,
    seed: int | None = None,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[float], None] = lambda share: None,
) -> Timeline:
    """Runs the pattern once.

    Args:
        rows: what each does for one image.
        seed: of the order and of how long idle lasts; of chance where None.
        progress: told the share of the pattern that is done.
    """
    return _Pattern(rows, plan, seed, clock, sleep, progress).run()


class _Pattern:
    def __init__(
        self,
        rows: Mapping[RowName, Query],
        plan: PowerPlan,
        seed: int | None,
        clock: Clock,
        sleep: Callable[[float], None],
        progress: Callable[[float], None],
    ) -> None:
        self._rows, self._queries, self._plan = tuple(rows), list(rows.values()), plan
        self._random, self._clock, self._sleep, self._progress = np.random.default_rng(seed), clock, sleep, progress
        self._zero, self._total = clock(), plan.seconds(len(rows))

    def run(self) -> Timeline:
        began, self._zero = time.time(), self._clock()
        self._idle()
        code, blocks = self._code(), []
        for _ in range(self._plan.rounds):
            for row in self._random.permutation(len(self._queries)):
                self._idle()
                blocks.append(self._block(int(row)))
        self._idle()
        code += self._code()
        self._idle()
        self._progress(1.0)
        return Timeline(began, self._plan, self._rows, tuple(code), tuple(blocks), self._now())

    def _now(self) -> float:
        return self._clock() - self._zero

    def _idle(self) -> None:
        self._progress(min(0.99, self._now() / self._total))
        self._sleep(2 * self._plan.settle_s + self._plan.idle_s * (1 + 0.5 * self._random.random()))

    def _load(self, row: int, seconds: float) -> int:
        """Images until so many seconds have passed; one at least."""
        end, images = self._now() + seconds, 0
        while not images or self._now() < end:
            self._queries[row]()
            images += 1
        return images

    def _code(self) -> list[tuple[float, float]]:
        """The code, kept to its own clock, so that late chips do not move those behind them."""
        found, start = [], self._now()
        for chip, load in enumerate(BARKER, 1):
            at, left = self._now(), start + chip * self._plan.chip_s - self._now()
            if left <= 0:
                continue
            if load:
                self._load(0, left)
                found.append((at, self._now()))
            else:
                self._sleep(left)
        return found

    def _block(self, row: int) -> Block:
        start = self._now()
        self._load(row, self._plan.settle_s)
        counted_from = self._now()
        images = self._load(row, self._plan.load_s)
        counted_to = self._now()
        self._load(row, self._plan.settle_s)
        return Block(row, start, counted_from, counted_to, self._now(), images)
