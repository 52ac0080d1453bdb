"""From measured times to figures: rows, ratios between them, limits. What `bench --json` prints is made here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from athe_export.bench.controls import DENSE
from athe_export.bench.protocol import Ratio, Run, Series, lacking, ratio, typical
from athe_export.bench.rows import PARTS, ROUTED, ROUTED_SIMPLE, ROUTER, Key, Row, Rows

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


@dataclass(frozen=True)
class Measured:
    """A row with its times."""

    row: Row
    series: Series

    @property
    def typical(self) -> float:
        return typical(self.series, self.row.shares)

    def faster_than(self, other: Measured) -> Ratio:
        """How many times as fast this row is."""
        return ratio(other.series, self.series, other.row.shares, self.row.shares)


@dataclass(frozen=True)
class Table:
    """All rows of a run: those measured, and why the others are not."""

    rows: Mapping[Key, Measured]
    not_measured: Mapping[Key, str]
    threads: int

    def between(self, fast: Key, slow: Key) -> Ratio | None:
        """How many times as fast; None where one of them was not measured."""
        if fast not in self.rows or slow not in self.rows:
            return None
        return self.rows[fast].faster_than(self.rows[slow])

    def why(self, *keys: Key) -> str:
        """Why one of these was not measured."""
        return next((self.not_measured[k] for k in keys if k in self.not_measured), "there is no such row")


def table_of(rows: Rows, run: Run, threads: int) -> Table:
    """Puts times to rows; a routed row of which a branch had no query is not measured."""
    measured, missing = {}, dict(rows.not_measured)
    for key, row in rows.measured.items():
        series = run.series[key]
        if absent := lacking(series, row.shares):
            missing[key] = f"none of {len(series.seconds)} queries took branch {', '.join(absent)}: measure with --full"
        else:
            measured[key] = Measured(row, series)
    return Table(measured, missing, threads)


def with_precision(key: Key, precision: str) -> Key:
    return Key(key.target, precision, key.kind, key.name)


def dense_of(key: Key, precision: str | None = None) -> Key:
    """The dense control of a row's target, at its precision or another."""
    return Key(key.target, precision or key.precision, DENSE, DENSE)


def row_json(table: Table, key: Key) -> dict[str, Any]:
    """A row of `rows`, all its fields null where it was not measured."""
    named = {"system": key.name, "kind": key.kind, "target": key.target, "precision": key.precision}
    found = table.rows.get(key)
    if found is None:
        empty = dict.fromkeys((*_times(None), "top1", "bytes", "stored_bytes", *_ratios(table, key)))
        return {**named, "threads": table.threads, "n": 0, **empty, "not_measured": table.not_measured[key]}
    figures = {"top1": found.row.top1, "bytes": found.row.bytes, "stored_bytes": found.row.stored_bytes}
    ratios = {name: _rounded(value) for name, value in _ratios(table, key).items()}
    count = len(found.series.seconds)
    return {**named, "threads": table.threads, "n": count, **_times(found), **figures, **ratios, "not_measured": None}


def _times(found: Measured | None) -> dict[str, Any]:
    """Milliseconds."""
    if found is None:
        return dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "typical_ms", "graph_ms", "parts_ms"))
    series, shares = found.series, found.row.shares
    return {
        **{f"p{p}_ms": _ms(series.percentile(p)) for p in (50, 90, 99)},
        "typical_ms": _ms(found.typical),
        "graph_ms": _ms(typical(series.of_part("router", "branch"), shares)),
        "parts_ms": {part: _ms(typical(series.of_part(part), shares)) for part in PARTS},
    }


def _ratios(table: Table, key: Key) -> dict[str, Ratio | None]:
    """A row against the dense control, and the two factors that the second ratio is made of."""
    fp32 = with_precision(key, "fp32")
    return {
        "vs_dense_same_precision": table.between(key, dense_of(key)),
        "vs_dense_fp32": table.between(key, dense_of(key, "fp32")),
        "pruning": table.between(fp32, dense_of(key, "fp32")),
        "quantization": table.between(key, fp32),
        "graph_vs_dense_same_precision": _of_graphs(table, key, dense_of(key)),
    }


def _of_graphs(table: Table, fast: Key, slow: Key) -> Ratio | None:
    """The ratio of what engines take alone."""
    if fast not in table.rows or slow not in table.rows:
        return None
    a, b = table.rows[fast], table.rows[slow]
    parts = ("router", "branch")
    return ratio(b.series.of_part(*parts), a.series.of_part(*parts), b.row.shares, a.row.shares)


def ratios_json(table: Table, target: str, precision: str, routed: bool) -> dict[str, Any]:
    """The three ratios of the system that `run` would take, end to end; null where a control is missing.

    Args:
        routed: whether there is a router; else the one branch stands for the routed simple image.
    """
    simple, mix = (_first(table, target, precision, kind, routed) for kind in (ROUTED_SIMPLE, ROUTED))
    named = {
        "routed_simple_vs_dense_same_precision": table.between(simple, dense_of(simple)),
        "routed_simple_vs_dense_fp32": table.between(simple, dense_of(simple, "fp32")),
        "int8_vs_fp32": table.between(with_precision(mix, "int8"), with_precision(mix, "fp32")),
        "router_share_of_dense": _router_share(table, target, precision),
    }
    values = {name: None if value is None else _figure(value.value) for name, value in named.items()}
    intervals = {name: _rounded(value) for name, value in named.items()}
    return {**values, "target": target, "precision": precision, "intervals": intervals}


def _router_share(table: Table, target: str, precision: str) -> Ratio | None:
    """The engine's time of the router over that of the dense control, whose precision may be another."""
    routers = (Key(target, p, ROUTER, ROUTER) for p in (precision, "fp32"))
    router = next((k for k in routers if k in table.rows), None)
    return _of_graphs(table, Key(target, precision, DENSE, DENSE), router) if router else None


def _first(table: Table, target: str, precision: str, kind: str, routed: bool) -> Key:
    if routed:
        return Key(target, precision, kind, kind)
    keys = (*table.rows, *table.not_measured)
    return next(k for k in keys if (k.target, k.precision, k.kind) == (target, precision, "branch"))


def limits_json(
    table: Table, limits: Mapping[str, Any] | None, systems: Mapping[str, str], routed: bool
) -> list[dict[str, Any]]:
    """The recipe's limits on speed, each held against the interval of its ratio, for every target that runs here.

    A limit passes where the interval lies above it, fails where it lies below, and is inconclusive else, and where a row
    that it needs was not measured.

    Args:
        limits: the manifest's `bench`.
        systems: by target the precision that `run` takes.
    """
    found = []
    for target, precision in systems.items():
        simple, mix = (_first(table, target, precision, kind, routed) for kind in (ROUTED_SIMPLE, ROUTED))
        least = (limits or {}).get("min_speedup_simple")
        if least is not None:
            found.append(_limit(table, f"{target}.min_speedup_simple", float(least), simple, dense_of(simple)))
        if (limits or {}).get("int8_not_slower_than_fp32"):
            pair = with_precision(mix, "int8"), with_precision(mix, "fp32")
            found.append(_limit(table, f"{target}.int8_not_slower_than_fp32", 1.0, *pair))
    return found


def _limit(table: Table, name: str, limit: float, fast: Key, slow: Key) -> dict[str, Any]:
    ratio = table.between(fast, slow)
    if ratio is None:
        unknown = dict.fromkeys(("value", "lower", "upper"))
        return {"name": name, "limit": limit, **unknown, "verdict": INCONCLUSIVE, "why": table.why(fast, slow)}
    verdict = PASS if ratio.lower >= limit else FAIL if ratio.upper < limit else INCONCLUSIVE
    return {"name": name, "limit": limit, **vars(ratio), "verdict": verdict, "why": None}


def verdict_of(limits: list[dict[str, Any]]) -> str | None:
    """Fail outranks inconclusive outranks pass; None where the recipe sets no limit."""
    found = {limit["verdict"] for limit in limits}
    return next((v for v in (FAIL, INCONCLUSIVE, PASS) if v in found), None)


def _rounded(value: Ratio | None) -> dict[str, float] | None:
    return None if value is None else {name: _figure(v) for name, v in vars(value).items()}


def _figure(value: float) -> float:
    return float(f"{value:.4g}")


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)
