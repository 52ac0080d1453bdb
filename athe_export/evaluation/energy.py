"""Energy of an image, of the rows that a power log was joined with; every other row says that it was not measured.

The pattern of load that a log is joined with is a cell of its own: the same command reads the log again without running it
again, and a log of another name takes a new run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from athe_export.bench import machine
from athe_export.bench.join import energy_of, patiently
from athe_export.bench.load_pattern import RowName, run_pattern, timeline_from
from athe_export.bench.meters import Columns
from athe_export.data.source import Dataset
from athe_export.errors import PowerLogError
from athe_export.evaluation.answers import Ids
from athe_export.evaluation.cells import Cell, Cells
from athe_export.evaluation.intervals import Estimate
from athe_export.evaluation.latency import THREADS, TimedRow, depends_on, row_of, timed_queries
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.evaluation.policies import LEARNED, Policy
from athe_export.evaluation.systems import System
from athe_export.evaluation.tables import NO_LOG


@dataclass(frozen=True)
class Metered:
    """The log of a power meter: its file, and where time and power stand in it; by its header where None."""

    log: Path
    columns: Columns | None = None


@dataclass(frozen=True)
class Energies:
    """What a log has told.

    Attributes:
        joules: of an image above idle, by row.
        cell: the pattern of load that was run for it.
        not_measured: why a row that is not in `joules` is not.
        error: why the log could not be joined.
        log: what was made of it: format, samples, alignment, idle power; as in `bench --json`, without its rows.
    """

    joules: Mapping[TimedRow, Estimate] = field(default_factory=dict)
    cell: Cell | None = None
    not_measured: str = NO_LOG
    error: PowerLogError | None = None
    log: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any] | None:
        """What is said of the log as a whole; None where there is none."""
        if self.cell is None:
            return None
        return {"refused": self.error.what if self.error else None, **(self.log or {}), "cell": self.cell.key}

    def row_json(self, system: System, policy: Policy) -> dict[str, Any]:
        """The two fields of a row: joules an image with their interval, or why there are none.

        What no device runs, such as an oracle's choice, has no energy: the log knows a routed row at its own mix alone.
        """
        found = self.joules.get(row_of(system, policy)) if policy.name == LEARNED or not policy.router else None
        why = self.not_measured if found is None else None
        return {"energy_j": None if found is None else found.to_json(), "energy_not_measured": why}


def energies(
    cells: Cells,
    systems: Sequence[System],
    dataset: Dataset,
    ids: Ids,
    plan: EvaluationPlan,
    metered: Metered,
    progress: Callable[[float], None],
) -> Energies:
    """Runs a pattern of load over all rows, once for each name of a log, and joins the log with it.

    Args:
        ids: images that the queries are of.
        metered: its log may be written only while this runs.
    """
    depends = depends_on(systems, dataset, ids) | {"log": metered.log.name, "power_plan": vars(plan.power)}

    def measured() -> Mapping[str, Any]:
        with machine.pinned(THREADS):
            rows = {_row_name(systems, row): query for row, query in timed_queries(systems, dataset, ids).items()}
            return run_pattern(rows, plan.power, progress=progress).to_json()

    cell = cells.get("power", depends, measured)
    try:
        timeline = timeline_from(cell.content, cell.file)
        found = patiently(lambda: energy_of(timeline, metered.log, metered.columns), metered.log)
    except PowerLogError as error:
        return Energies(cell=cell, not_measured=f"the power log was refused: {error.what}", error=error)
    joules = {TimedRow(r["system"], r["kind"]): Estimate(**r["joules"]) for r in found.pop("rows")}
    return Energies(joules, cell, "no device runs this by itself", log=found)


def _row_name(systems: Sequence[System], row: TimedRow) -> RowName:
    own = next(s for s in systems if s.key == row.system)
    return row.system, row.row, own.target, own.precision
