"""`bench --power-log`: a run, and joining it with a log that may be whole only after it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from athe_export import console
from athe_export.bench.join import joined, keep, kept_run, patiently
from athe_export.bench.meters import AUTO, Columns, asked_columns
from athe_export.bench.power_log import check_format
from athe_export.bench.run import BenchReport, bench_bundle
from athe_export.bench.table import bench_text
from athe_export.errors import EnvironmentFailure, Interrupted, PowerLogError, UsageError

UNCHANGED = {"full": False, "threads": 1, "target": "auto"}  # what bench measures by default


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
        PowerLogError, Interrupted: the log cannot be read or joined, or Ctrl-C came while it was awaited. A new run is kept
            beside it then; the remedy says how to join it.
        UsageError: `kept` is no run of this bundle or comes with settings of a new one, or there is no log.
    """
    asked = asked_columns(columns)
    if log is None:
        raise UsageError("there is no log to read", where="--power-log", remedy="add --power-log FILE")
    if kept is not None:
        if settings != UNCHANGED:
            what = "--join measures nothing, so that --full, --threads and --target would be without effect"
            raise UsageError(what, where="--join", remedy="leave them out, or measure again without --join")
        return joined(kept_run(kept, bundle), log, asked)
    check_format(log, asked)
    with console.Watch() as watch:
        shares: dict[str, Any] = {"progress": watch.share("measure"), "power_progress": watch.share("pattern of load")}
        report = bench_bundle(bundle, power=True, **settings, **shares)
    try:
        path = keep(report.document, log)
    except EnvironmentFailure as err:
        try:
            return patiently(lambda: joined(report, log, asked), log)
        except (PowerLogError, KeyboardInterrupt):
            raise err from None
    found = _joined_or_kept(report, bundle, log, columns, path, as_json)
    path.unlink(missing_ok=True)
    return found


def _joined_or_kept(report: BenchReport, bundle: Path, log: Path, columns: str, path: Path, as_json: bool) -> BenchReport:
    """The run with its energy; where there is none it stays in `path`, and the error says so."""
    asked = asked_columns(columns)
    named = [] if columns == AUTO else ["--power-columns", columns]
    later = ["athe-export", "bench", str(bundle), "--power-log", str(log), *named, "--join", str(path)]
    remedy = f"the run is kept, and joined by: {shlex.join(later)}"
    try:
        return patiently(lambda: joined(report, log, asked), log)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while the log was awaited", remedy=remedy, report=report.document) from None
    except PowerLogError as err:
        if sys.stdin.isatty() and console.err.is_terminal:
            found = _asked_again(report, log, asked, err, path)
            if found is not None:
                return found
        if not as_json:
            console.print_tables(*bench_text({**report.document, **err.report}))
        err.remedy += f"; {remedy}"
        raise


def _asked_again(
    report: BenchReport, log: Path, columns: Columns | None, err: PowerLogError, path: Path
) -> BenchReport | None:
    """Tries again whenever Enter is pressed; None after Ctrl-C, which leaves the run where it is kept."""
    while True:
        try:
            said = f"{err.what}\n  at: {err.where}\n  next: {err.remedy}\nThe run is kept in {path}. "
            console.err.print(
                f"{said}Press Enter when the log is there, Ctrl-C to join it later.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            input()
            found = joined(report, log, columns)
        except PowerLogError as again:
            err = again
        except (KeyboardInterrupt, EOFError):
            return None
        else:
            return found
