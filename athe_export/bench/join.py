"""Joining a bench with a power meter's log, right after the run or later from a document that was kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from athe_export.bench.alignment import LogTooShort, align
from athe_export.bench.energy import energy_json
from athe_export.bench.load_pattern import Timeline, timeline_from
from athe_export.bench.meters import Columns
from athe_export.bench.power_log import read_power_log
from athe_export.bench.run import BenchReport
from athe_export.bundle.reader import open_bundle
from athe_export.errors import EnvironmentFailure, PowerLogError, UsageError

T = TypeVar("T")
_PATIENCE_S = 10.0  # a log that has not grown for so long is not being written any more


def joined(report: BenchReport, log: Path, columns: Columns | None) -> BenchReport:
    """The report with `energy` filled in.

    Raises:
        PowerLogError: the log cannot be read or joined; the report stands beside the error, with the reason in `energy`.
        UsageError: the report holds no pattern of load.
    """
    timeline = timeline_from((report.document.get("energy") or {}).get("timeline"), "the bench that is to be joined")
    try:
        energy = energy_of(timeline, log, columns)
    except PowerLogError as err:
        refused = {"refused": err.what, "timeline": timeline.to_json()}
        err.report = {**report.document, "energy": refused}
        raise
    return BenchReport({**report.document, "energy": {**energy, "timeline": timeline.to_json()}})


def energy_of(timeline: Timeline, log: Path, columns: Columns | None) -> dict[str, Any]:
    """What a log tells of a pattern of load, as `energy.energy_json` gives it.

    Raises:
        PowerLogError: the log cannot be read or joined.
    """
    content = read_power_log(log, columns)
    return energy_json(content, timeline, align(content, timeline))


def patiently(
    join: Callable[[], T],
    log: Path,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `join` makes of a log; one that ends too early is read again for as long as its program still writes to it."""
    grown, size = clock(), -1
    while True:
        try:
            return join()
        except LogTooShort:
            now = log.stat().st_size
            if now != size:
                grown, size = clock(), now
            if clock() - grown > _PATIENCE_S:
                raise
            sleep(1.0)


def kept_path(log: Path) -> Path:
    """Where a run is kept that could not be joined."""
    return log.with_name(f"{log.name}.bench.json")


def keep(document: Mapping[str, Any], log: Path) -> Path:
    """Writes a run beside the log, whole or not at all.

    Raises:
        EnvironmentFailure: it cannot be written; the run stands beside the error.
    """
    path = kept_path(log)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as err:
        part.unlink(missing_ok=True)
        raise EnvironmentFailure(
            f"the run cannot be kept: {err.strerror}",
            where=str(path),
            remedy="free space, or name a log in another folder",
            report=document,
        ) from err
    return path


def kept_run(path: Path, bundle: Path) -> BenchReport:
    """A run that was kept, or printed by `bench --json`.

    Raises:
        UsageError: it is no such document, or of another bundle.
    """
    remedy = "give the file that `athe-export bench BUNDLE --power-log LOG` has kept or printed with --json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        digest, energy = document["bundle"]["digest"], document["energy"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is no document of bench"
        raise UsageError(f"the run cannot be read: {why}", where=str(path), remedy=remedy) from None
    if digest != open_bundle(bundle).digest:
        raise UsageError("the run is of another bundle", where=str(path), remedy="give the bundle that it was measured on")
    timeline_from(energy.get("timeline") if isinstance(energy, dict) else None, str(path))
    document.pop("error", None)
    return BenchReport(document)
