"""One interleaved run of every row that can be opened, and what each has answered."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from athe_export.bench import machine
from athe_export.bench.protocol import Plan, Query, Series, measure
from athe_export.bench.run import fixed_work, unrest
from athe_export.stages import StageTimer
from peers.ours import own_rows
from peers.peer import FAMILIES, OURS, RATES, Job, Row, peer_rows, peers_of
from peers.processes import WorkerProcess, workers
from peers.rates import Work, products_of, rate_rows, works_of

REFERENCE = "torch eager fp32"
_PACKAGES = {  # beside what peers need: of our own rows and of the rates
    OURS: ("ai_edge_litert", "onnxruntime", "numpy"),
    RATES: ("litert_torch", "onnxruntime"),
}


@dataclass(frozen=True)
class Answers:
    """Of a row: which images were asked (int64 [n]) and its outputs, float32 [n, classes]."""

    positions: npt.NDArray[np.int64]
    outputs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """Everything that a run has found; each row is in `series` or in `not_measured`, and never in both."""

    rows: tuple[Row, ...]
    rates: tuple[Row, ...]
    series: Mapping[Row, Series]
    answers: Mapping[Row, Answers]
    not_measured: Mapping[Row, str]
    work: Mapping[tuple[str, str], Work]  # by graph and form
    packages: Mapping[str, str]
    pinned: tuple[int, ...]
    before: machine.Moment
    after: machine.Moment
    cpu_share: float
    fixed_work: tuple[float, float]

    @property
    def noise(self) -> tuple[str, ...]:
        """Why the run was a noisy one; empty of a quiet one."""
        return machine.disturbances(1, self.cpu_share, *self.fixed_work, self.before, self.after)


def rows_of(job: Job) -> list[Row]:
    """Every line of the table."""
    return [*peer_rows(FAMILIES, job.graphs), *own_rows(job.graphs, job.said["routed"])]


def run(
    job: Job,
    families: Sequence[str],
    plan: Plan,
    pythons: Mapping[str, str],
    timer: StageTimer,
    progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Opens, asks and times.

    Args:
        families: those to measure; the others' rows are not measured because they were left out.
        pythons: by family, the interpreter of another virtual environment.

    Raises:
        EnvironmentFailure: a worker died while times were taken.
    """
    rows, works = rows_of(job), works_of(job)
    rates = rate_rows(products_of(works.values()))
    missing = {row: "its family was left out" for row in (*rows, *rates) if row.family not in families}
    with machine.pinned(1) as pinned, workers(list(families), job, pythons) as found:
        opened: list[Row] = []
        for row in (row for row in (*rows, *rates) if row.family in found):
            with timer.stage(f"open {row.name}"):
                why = found[row.family].open(row)
            if why is None:
                opened.append(row)
            else:
                missing[row] = why
        with timer.stage("answers"):
            answers = {r: _answers(found[r.family], r, job.folder / "answers.npz") for r in opened if r.family != RATES}
        before = machine.now(pinned)
        with timer.stage("times"):
            queries: dict[Hashable, Query] = {row: found[row.family].query(row) for row in opened}
            taken = measure(queries | {None: fixed_work}, plan, progress=progress).series
        after = machine.now(pinned)
        packages = {k: v for family, w in found.items() for k, v in w.ask(do="versions", names=_needed(family)).items()}
    series = {row: taken[row] for row in opened}
    busy = sum(float(s.parts["cpu"].sum()) for s in series.values())
    wall = sum(float(s.parts["image"].sum()) for s in series.values())
    return Measured(
        tuple(rows), tuple(rates), series, answers, missing, works, packages, pinned, before, after,
        busy / wall if wall else 1.0, unrest(taken[None]),
    )  # fmt: skip


def _answers(worker: WorkerProcess, row: Row, file: Path) -> Answers:
    worker.answers(row, file)
    with np.load(file) as found:
        return Answers(found["positions"], found["outputs"])


def _needed(family: str) -> list[str]:
    """Import names of the packages whose versions matter to a family."""
    needs = [name for peer in peers_of(family) for name in peer.needs] if family in FAMILIES else _PACKAGES[family]
    return list(dict.fromkeys(needs))
