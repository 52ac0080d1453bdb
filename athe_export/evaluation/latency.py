"""Times: several runs of all systems, each interleaved as `bench` does it, an image in memory to its label at batch 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from athe_export.bench import machine
from athe_export.bench.protocol import Query, Run, measure, typical
from athe_export.bench.rows import ImageToLabel, mixed, photos_by_branch
from athe_export.bench.run import fixed_work, unrest
from athe_export.data.source import Dataset
from athe_export.evaluation.answers import Ids, engine_of
from athe_export.evaluation.cells import Cell, Cells
from athe_export.evaluation.intervals import Estimate, mean_of_runs
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.evaluation.policies import Policy
from athe_export.evaluation.subset import ids_sha256
from athe_export.evaluation.systems import System
from athe_export.runtime.predictor import RoutedGraphs, labels_of, preprocessing_of

ROUTED = "(routed)"  # no branch can be called so
THREADS = 1


class TimedRow(NamedTuple):
    """A system's whole (`routed`), or one of its branches without the router."""

    system: str
    row: str


_FIXED_WORK = TimedRow("", "fixed work")


@dataclass(frozen=True)
class Latencies:
    """Runs of all rows; seconds by kind of image, a kind being the branch that it took."""

    cells: tuple[Cell, ...]

    def seconds(self, system: System, policy: Policy) -> list[float] | str:
        """Typical seconds of an image a run, each branch's weighted by the policy's shares; or why there is none."""
        row = row_of(system, policy)
        shares = {branch: share for branch, share in policy.shares.items() if share}
        found = []
        for cell in self.cells:
            measured = cell.content["rows"][_name(row)]["seconds"]
            if lacking := [kind for kind in shares if kind not in measured]:
                return f"none of the timed images takes branch {', '.join(lacking)}"
            found.append(sum(share * measured[kind] for kind, share in shares.items()))
        return found

    @property
    def noise(self) -> list[str]:
        """What disturbed the runs, a line each."""
        return [f"run {at}: {why}" for at, cell in enumerate(self.cells, 1) for why in cell.content["noise"]]

    def queries(self, system: System, policy: Policy) -> int:
        """How many images of the row behind a policy were timed in all runs together."""
        name = _name(row_of(system, policy))
        return sum(cell.content["rows"][name]["n"] for cell in self.cells)


def row_of(system: System, policy: Policy) -> TimedRow:
    """The row whose times a policy's are made of."""
    return TimedRow(system.key, ROUTED if policy.router else next(iter(policy.shares)))


def estimate_ms(seconds: Sequence[float]) -> Estimate:
    """Mean and interval over runs, milliseconds."""
    return mean_of_runs([1e3 * s for s in seconds])


def times_as_fast(seconds: Sequence[float], dense: Sequence[float]) -> Estimate:
    """How many times as fast as the dense model: the ratio of each run, since what a machine does meanwhile meets both."""
    return mean_of_runs([slow / fast for fast, slow in zip(seconds, dense, strict=True)])


def latency_cells(
    cells: Cells,
    systems: Sequence[System],
    dataset: Dataset,
    ids: Ids,
    plan: EvaluationPlan,
    progress: Callable[[str, int, int], None],
) -> Latencies:
    """Times all systems in `plan.runs` runs, each a cell; graphs are opened anew for each.

    Args:
        ids: images that the queries are of.
    """
    found = []
    for number in range(plan.runs):
        depends = depends_on(systems, dataset, ids) | {
            "plan": vars(plan.latency),
            "run": number,
            "seed": plan.seed + number,
        }
        step = f"run {number + 1} of {plan.runs}"
        run = _timed(systems, dataset, ids, plan, plan.seed + number, _share(progress, step))
        found.append(cells.get("latency", depends, run))
    return Latencies(tuple(found))


def depends_on(systems: Sequence[System], dataset: Dataset, ids: Ids) -> dict[str, Any]:
    """What the work of all rows together depends on, for the key of a cell."""
    return {
        "systems": sorted({(s.key, s.of.bundle.digest) for s in systems}),
        "dataset": dataset.digest,
        "ids_sha256": ids_sha256(ids),
        "threads": THREADS,
        "engines": {s.target: engine_of(s.target) for s in systems},
    }


def _share(progress: Callable[[str, int, int], None], step: str) -> Callable[[float], None]:
    return lambda done: progress(step, int(100 * done), 100)


def _timed(
    systems: Sequence[System],
    dataset: Dataset,
    ids: Ids,
    plan: EvaluationPlan,
    seed: int,
    progress: Callable[[float], None],
) -> Callable[[], Mapping[str, Any]]:
    def measured() -> Mapping[str, Any]:
        started = time.time()
        with machine.pinned(THREADS) as pinned:
            before = machine.now(pinned)
            rows = {_FIXED_WORK: fixed_work} | timed_queries(systems, dataset, ids)
            run = measure(rows, plan.latency, seed, progress=progress)
            after = machine.now(pinned)
        spread, drift = unrest(run.series[_FIXED_WORK])
        return {
            "rows": _rows_json(run),
            "noise": list(machine.disturbances(THREADS, run.busy, spread, drift, before, after)),
            "cpu_share": round(run.busy, 4),
            "pinned_to": list(pinned),
            "before": before.to_json(),
            "after": after.to_json(),
            "started": started,  # seconds since 1970, as a power log has them
            "ended": time.time(),
        }

    return measured


def timed_queries(systems: Sequence[System], dataset: Dataset, ids: Ids) -> dict[TimedRow, Query]:
    """A query of each system's whole where there is a router, and of each of its branches; graphs are opened here."""
    rows: dict[TimedRow, Query] = {}
    for system in systems:
        rows |= _rows(system, dataset, ids)
    return rows


def _rows(system: System, dataset: Dataset, ids: Ids) -> dict[TimedRow, Query]:
    bundle, preprocessing = system.of.bundle, preprocessing_of(system.manifest)
    split, labels = system.manifest.gate["split"], labels_of(bundle)
    graphs = RoutedGraphs(bundle, system.target, system.precision, THREADS)
    sources = [preprocessing.source(dataset.image(split, int(i))) for i in ids]
    photos = photos_by_branch(graphs, preprocessing, sources)
    every = [photo for own in photos.values() for photo in own]
    found: dict[TimedRow, Query] = {}
    for branch in system.branches:
        graphs.session(branch)
        found[TimedRow(system.key, branch)] = ImageToLabel(graphs, preprocessing, every, labels, branch)
    if system.routed:
        shares = {branch: share for branch, share in system.built_shares().items() if photos.get(branch)}
        mix = mixed(photos, shares) or every
        found[TimedRow(system.key, ROUTED)] = ImageToLabel(graphs, preprocessing, mix, labels)
    return found


def _rows_json(run: Run) -> dict[str, Any]:
    """By row: how many queries, and the typical seconds of each kind of image."""
    found = {}
    for key, series in run.series.items():
        if isinstance(key, TimedRow) and key != _FIXED_WORK:
            kinds = {str(kind): typical(series, {str(kind): 1.0}) for kind in np.unique(series.kinds)}
            found[_name(key)] = {"n": len(series.seconds), "seconds": kinds}
    return found


def _name(row: TimedRow) -> str:
    return f"{row.system}/{row.row}"
