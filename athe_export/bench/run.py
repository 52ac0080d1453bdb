"""`bench`: a bundle measured on this machine, and everything that is to be known of it as one document."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athe_export.bench import machine
from athe_export.bench.cold_start import cold_start
from athe_export.bench.controls import find_controls
from athe_export.bench.load_pattern import FULL_POWER, QUICK_POWER, PowerPlan, RowName, Timeline, run_pattern
from athe_export.bench.protocol import FULL, QUICK, UNSPLIT, Lap, Plan, Query, Series, measure
from athe_export.bench.report import limits_json, ratios_json, row_json, table_of, verdict_of
from athe_export.bench.rows import ROUTER, Key, Rows, keys_of, png, rows_of
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.dependencies import installed_version
from athe_export.errors import GateFailed, GateInconclusive, UsageError
from athe_export.runtime.engines import resolve_target, unavailable
from athe_export.runtime.golden import read_golden

_FIXED_WORK = Key("", "", "fixed work", "fixed work")
_COLD_STARTS = {False: 3, True: 9}  # fresh processes a target; True: --full


@dataclass(frozen=True)
class BenchReport:
    """What `bench --json` prints; `verdict` is of the recipe's limits, None without any."""

    document: Mapping[str, Any]

    @property
    def verdict(self) -> str | None:
        return self.document["verdict"]

    @property
    def missed(self) -> tuple[str, ...]:
        """The limits that do not pass, a line each."""
        return tuple(limit_said(limit) for limit in self.document["limits"] if limit["verdict"] != "pass")


def limit_said(limit: Mapping[str, Any]) -> str:
    """A limit on speed in words."""
    if limit["value"] is None:
        return f"{limit['name']}: at least {limit['limit']:g} times as fast is asked for, not measured: {limit['why']}"
    interval = f"{limit['value']:.2f} [{limit['lower']:.2f}, {limit['upper']:.2f}]"
    return f"{limit['name']}: {interval} times as fast, at least {limit['limit']:g} is asked for: {limit['verdict']}"


def bench_bundle(
    path: Path,
    *,
    full: bool = False,
    threads: int = 1,
    target: str = "auto",
    progress: Callable[[float], None] = lambda share: None,
    plan: Plan | None = None,
    power: bool = False,
    power_plan: PowerPlan | None = None,
    power_progress: Callable[[float], None] = lambda share: None,
) -> BenchReport:
    """Measures every row that can be measured here, in one interleaved run, and the cold start in fresh processes.

    Args:
        target: one of the bundle's, or `auto`: all whose engine is here.
        plan: in place of the quick or the full one.
        power: run a pattern of load behind it, for a power meter's log that `joined` reads.
        power_plan: in place of the quick or the full pattern.

    Raises:
        BundleIntegrityError: the bundle or the controls beside it are not whole.
        MissingDependency: no target that is asked for can run here.
        UsageError: the bundle has no such target, or there are fewer CPUs than threads.
    """
    bundle = open_bundle(path)
    bundle.check()
    main, _ = resolve_target(bundle.manifest, target)
    out = unavailable(bundle.manifest.targets) if target == "auto" else {}
    targets = [t for t in bundle.manifest.targets if (t == target or target == "auto") and t not in out]
    if threads > (cpus := len(machine.allowed_cpus())):
        raise UsageError(
            f"{threads} threads cannot be pinned to {cpus} CPUs", where="--threads", remedy=f"give {cpus} at most"
        )
    controls, why = find_controls(bundle)
    with machine.pinned(threads) as pinned:
        before = machine.now(pinned)
        rows = rows_of(bundle, controls, why, targets, threads)
        queries = {key: row.query for key, row in rows.measured.items()} | {_FIXED_WORK: fixed_work}
        run = measure(queries, plan or (FULL if full else QUICK), progress=progress)
        slow = power_plan or (FULL_POWER if full else QUICK_POWER)
        timeline = _power_pattern(rows, slow, power_progress) if power else None
        after = machine.now(pinned)
        photo = png(read_golden(bundle)["images"][0])
        systems = {t: bundle.manifest.precisions(t)[0] for t in targets}
        cold = [cold_start(bundle.path, t, p, threads, photo, _COLD_STARTS[full]) for t, p in systems.items()]
    table = table_of(rows, run, threads)
    spread, drift = unrest(run.series[_FIXED_WORK])
    noise = machine.disturbances(threads, run.busy, spread, drift, before, after)
    keys = [k for t in targets for k in keys_of(bundle.manifest, t)]
    routed = bundle.manifest.router is not None
    limits = limits_json(table, bundle.manifest.bench, systems, routed)
    first = next(c for c in cold if c["target"] == main)
    document = {
        "bundle": {"name": bundle.manifest.name, "digest": bundle.digest, "gate_at_build": bundle.manifest.verdict},
        "machine": _machine(pinned, before, after, noise, targets),
        "protocol": _protocol(plan or (FULL if full else QUICK), full, run.busy, spread, drift),
        "rows": [row_json(table, key) for key in keys],
        "ratios": ratios_json(table, main, systems[main], routed),
        "accuracy": _accuracy(bundle, targets),
        "cold_start_ms": first["cold_start_ms"],
        "peak_rss_mb": first["peak_rss_mb"],
        "cold_start": cold,
        "energy": timeline and {"refused": "not joined with a log yet", "timeline": timeline.to_json()},
        "limits": limits,
        "verdict": verdict_of(limits),
        "not_run": [{"target": t, "why": w} for t, w in out.items()],
    }
    return BenchReport(document)


@functools.cache
def _numbers() -> Any:
    return np.random.default_rng(0).integers(0, 1 << 30, 1 << 14)


def _power_pattern(rows: Rows, plan: PowerPlan, progress: Callable[[float], None]) -> Timeline:
    """The pattern over every row but the router alone, which no device runs for its own sake."""
    queries: dict[RowName, Query] = {
        (key.name, key.kind, key.target, key.precision): row.query
        for key, row in rows.measured.items()
        if key.kind != ROUTER
    }
    return run_pattern(queries, plan, progress=progress)


def fixed_work() -> Lap:
    """Work that is the same every time and has nothing to do with the graphs: what sways it sways them too."""
    np.sort(_numbers(), kind="stable")
    return UNSPLIT


def unrest(series: Series) -> tuple[float, float]:
    """90th percentile of the fixed work over its median, and how much longer it took in the last third than in the first."""
    third = max(1, len(series.seconds) // 3)
    first, last = (float(np.median(part)) for part in (series.seconds[:third], series.seconds[-third:]))
    return series.percentile(90) / series.percentile(50), last / first - 1


def _machine(
    cpus: tuple[int, ...], before: machine.Moment, after: machine.Moment, noise: tuple[str, ...], targets: list[str]
) -> dict[str, Any]:
    here = machine.processor()
    engines = {"litert": ("ai_edge_litert", "tflite_runtime"), "onnx": ("onnxruntime",)}
    names = ["numpy", "PIL", *(name for t in targets for name in engines.get(t, ()))]
    return {
        "processor": here.name,
        "features": list(here.features),
        "cpus": here.cpus,
        "pinned_to": list(cpus),
        "governor": list(machine.governors(cpus)),
        "before": before.to_json(),
        "after": after.to_json(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in names if (version := installed_version(name))},
        "noisy": bool(noise),
        "noise": list(noise),
    }


def _protocol(plan: Plan, full: bool, busy: float, spread: float, drift: float) -> dict[str, Any]:
    return {
        "full": full,
        "batch": 1,
        **vars(plan),
        "cpu_share": round(busy, 3),
        "fixed_work_p90_over_p50": round(spread, 3),
        "fixed_work_drift": round(drift, 3),
    }


def _accuracy(bundle: Bundle, targets: list[str]) -> dict[str, Any]:
    """What the gate found of the whole of each system, so that no ratio stands without it."""
    parity = bundle.manifest.parity
    if parity is None:
        return {"images": None, "reference_top1": None, "top1": {}, "gate_at_build": bundle.manifest.verdict}
    return {
        "images": parity.get("images"),
        "reference_top1": parity["reference"]["top1"],
        "top1": {name: found["top1"] for name, found in parity["targets"].items() if name.partition("/")[0] in targets},
        "gate_at_build": bundle.manifest.verdict,
    }


def missed_error(report: BenchReport, bundle: Path) -> GateFailed | GateInconclusive:
    """The error of a bench whose limits do not all pass, with the whole document beside it."""
    failed = report.verdict == "fail"
    lines = "\n".join(f"  {line}" for line in report.missed)
    what = (
        "the recipe's limits on speed do not hold here" if failed else "the recipe's limits on speed cannot be decided here"
    )
    remedy = (
        "run the faster precision (athe-export tune), or prune harder and build again"
        if failed
        else "measure for longer with --full on a machine that does nothing else; a line on what was not measured says what "
        "it needs"
    )
    error = GateFailed if failed else GateInconclusive
    return error(f"{what}:\n{lines}", where=str(bundle), remedy=remedy, report=report.document)
