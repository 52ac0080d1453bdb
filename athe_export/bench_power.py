"""`bench --power-log`: a run, and joining it with a log that may be whole only after it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from athe_export import console
from athe_export.bench.join import joined, joined_patiently, keep, kept_run
from athe_export.bench.meters import Columns, asked_columns
from athe_export.bench.power_log import check_format
from athe_export.bench.run import BenchReport, bench_bundle
from athe_export.bench.table import bench_text
from athe_export.errors import PowerLogError, UsageError


def bench_with_power(
    bundle: Path,
    log: Path | None,
    columns: str,
    kept: Path | None,
    settings: Mapping[str, Any],
    as_json: bool,
) -> BenchReport:
    """A report with `energy`, of a new run or, where `kept` is given, of that one.

    Args:
        settings: what `bench_bundle` is given.

    Raises:
        PowerLogError: the log cannot be read or joined. A new run is kept beside it then; the remedy says how to join it.
        UsageError: `kept` is no run of this bundle, or comes without a log.
    """
    if log is None:
        raise UsageError("--join takes a log to join the run with", where="--join", remedy="add --power-log FILE")
    asked = asked_columns(columns)
    if kept is not None:
        return joined(kept_run(kept, bundle), log, asked)
    check_format(log, asked)
    with console.Watch() as watch:
        shares = {"progress": watch.share("measure"), "power_progress": watch.share("pattern of load")}
        report = bench_bundle(bundle, power=True, **settings, **shares)
    try:
        return joined_patiently(report, log, asked)
    except PowerLogError as err:
        path = keep(report.document, log)
        if sys.stdin.isatty() and console.err.is_terminal:
            return _asked_again(report, log, asked, err, path)
        if not as_json:
            console.print_tables(*bench_text({**report.document, **err.report}))
        err.remedy += f"; the run is kept: athe-export bench {bundle} --power-log {log} --join {path}"
        raise


def _asked_again(report: BenchReport, log: Path, columns: Columns | None, err: PowerLogError, path: Path) -> BenchReport:
    """Tries again whenever Enter is pressed; Ctrl-C ends that, and leaves the run where it is kept."""
    while True:
        console.err.print(
            f"{err.what}\n  at: {err.where}\n  next: {err.remedy}\nThe run is kept in {path}. Press Enter when the log is "
            "there, Ctrl-C to join it later.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        input()
        try:
            found = joined(report, log, columns)
        except PowerLogError as again:
            err = again
        else:
            path.unlink(missing_ok=True)
            return found
