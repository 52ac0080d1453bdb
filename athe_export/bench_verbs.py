"""`bench` and `tune`: a bundle measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from athe_export import console
from athe_export.options import BundleArgument, JsonFlag, PowerColumns, PowerLogOption

BENCH_EXAMPLES = "Examples: athe-export bench BUNDLE · athe-export bench BUNDLE --full --power-log meter.csv --json"
TUNE_EXAMPLES = "Examples: athe-export tune BUNDLE · athe-export tune BUNDLE --json"


def bench(
    bundle: BundleArgument,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="At least 1,024 queries and 60 s a row, or about 15 s in all.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine, pinned to as many CPUs.")] = 1,
    target: Annotated[str, typer.Option(help="auto (all that can run here), litert or onnx.")] = "auto",
    power_log: PowerLogOption = None,
    power_columns: PowerColumns = "auto",
    join: Annotated[
        Path | None, typer.Option(help="Measure nothing; join the log with this run, which bench has kept or printed.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a bundle on this machine against its controls, and hold it to the recipe's limits on speed."""
    from athe_export.bench.run import bench_bundle, missed_error
    from athe_export.bench.table import bench_text
    from athe_export.bench_power import bench_with_power

    settings: dict[str, Any] = {"full": full, "threads": threads, "target": target}
    if power_log is not None or join is not None or power_columns != "auto":
        report = bench_with_power(bundle, power_log, power_columns, join, settings, as_json)
    else:
        with console.Watch() as watch:
            report = bench_bundle(bundle, progress=watch.share("measure"), **settings)
    if not as_json:
        console.print_tables(*bench_text(report.document))
    if report.verdict in ("fail", "inconclusive"):
        raise missed_error(report, bundle)
    if as_json:
        console.print_json(dict(report.document))


def tune(bundle: BundleArgument, as_json: JsonFlag = False) -> None:
    """Find the fastest target, precision and thread count of a bundle on this machine, and remember it for `run`."""
    from athe_export.bench.table import tune_text
    from athe_export.bench.tune import tune_bundle

    with console.Watch() as watch:
        tuned = tune_bundle(bundle, watch.share("measure")).to_json()
    console.print_json(tuned) if as_json else console.print_tables(*tune_text(tuned))
