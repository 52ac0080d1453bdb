"""A bench in words and tables, from the document that `--json` prints: a person reads the same figures as a machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from athe_export.bench.run import limit_said

COLUMNS = (
    *("target", "row", "n", "p50 ms", "p90 ms", "p99 ms"),
    *("vs dense, same precision", "vs dense fp32", "= pruning", "× quantization", "gate top-1"),
)
PART_COLUMNS = ("target", "row", "decode ms", "resize ms", "router ms", "branch ms", "graphs alone ms", "graphs vs dense")
ENERGY_COLUMNS = ("target", "row", "rounds", "images", "W above idle", "J an image", "95% interval")
COLD_COLUMNS = ("target", "precision", "numpy, Pillow ms", "import ms", "load ms", "first answer ms", "peak MB")
NOT_MEASURED = "not measured"
Grid = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, columns, rows
_RATIOS = ("vs_dense_same_precision", "vs_dense_fp32", "pruning", "quantization")


def row_cells(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under COLUMNS; ratios of a noisy run have one decimal and no more."""
    cells, noisy = [], document["machine"]["noisy"]
    for row in document["rows"]:
        times = [_ms(row[f"p{p}_ms"]) for p in (50, 90, 99)]
        ratios = [_times(row[name], noisy) for name in _RATIOS]
        top1 = "" if row["kind"] == "router" else _percent(row["top1"])
        cells.append((row["target"], _named(row), f"{row['n']:,}", *times, *ratios, top1))
    return cells


def part_cells(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under PART_COLUMNS, of what was measured."""
    noisy = document["machine"]["noisy"]
    return [
        (
            *(row["target"], _named(row)),
            *(_ms(row["parts_ms"][part]) for part in ("decode", "resize", "router", "branch")),
            *(_ms(row["graph_ms"]), _times(row["graph_vs_dense_same_precision"], noisy)),
        )
        for row in document["rows"]
        if row["not_measured"] is None
    ]


def cold_cells(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under COLD_COLUMNS."""
    names = ("numpy_pillow_ms", "import_ms", "load_ms", "first_answer_ms", "peak_rss_mb")
    return [
        (c["target"], c["precision"], *(NOT_MEASURED if c[name] is None else f"{c[name]:.0f}" for name in names))
        for c in document["cold_start"]
    ]


def energy_cells(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under ENERGY_COLUMNS; none of a run that was not joined with a power meter's log."""
    cells: list[tuple[str, ...]] = []
    for row in (document["energy"] or {}).get("rows", ()):
        joules = {name: f"{value:.3g}" for name, value in row["joules"].items()}
        figures = (f"{row['watts_above_idle']:.3g}", joules["value"], f"{joules['lower']} to {joules['upper']}")
        cells.append((row["target"], _named(row), str(row["rounds"]), f"{row['images']:,}", *figures))
    return cells


def _energy_lines(energy: Mapping[str, Any] | None) -> Iterator[str]:
    if energy is None:
        return
    if energy["refused"]:
        yield f"energy: {NOT_MEASURED}: {energy['refused']}"
        return
    log, clock, idle = energy["log"], energy["alignment"], energy["idle_w"]
    yield (
        f"energy: {log['file']} ({log['format']}), {log['samples']:,} samples, one every {log['interval_s']:g} s; found at "
        f"correlation {clock['correlation']:.2f}, clock off by {clock['rate_ppm']} ppm, misfit {clock['misfit_s']:.2f} s"
    )
    idles = f"{idle['value']:.3g} W ({idle['lowest']:.3g} to {idle['highest']:.3g})"
    yield f"energy is above idle, {idles}; the meter's own error is not in the interval"
    yield from (f"energy: {note}" for note in log["notes"])
    if skipped := log["skipped_lines"]:
        yield f"energy: lines of the log that could not be read: {', '.join(map(str, skipped))}"


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """What stands below the tables."""
    yield from _machine_lines(document["machine"])
    yield from _energy_lines(document["energy"])
    accuracy = document["accuracy"]
    if accuracy["images"] is None:
        yield "accuracy: the bundle was never gated; of its speed nothing follows"
    else:
        found = ", ".join(f"{name} {_percent(top1)}" for name, top1 in accuracy["top1"].items())
        yield f"accuracy, gate of {accuracy['images']:,} images: fp32 {_percent(accuracy['reference_top1'])}, {found}"
    for why in dict.fromkeys(row["not_measured"] for row in document["rows"] if row["not_measured"]):
        yield f"{NOT_MEASURED}: {why}"
    yield from (f"{NOT_MEASURED}: cold start: {c['not_measured']}" for c in document["cold_start"] if c["not_measured"])
    yield from (f"not run: {left['target']}: {left['why']}" for left in document["not_run"])
    yield from (f"limit {limit_said(limit)}" for limit in document["limits"])


def _machine_lines(machine: Mapping[str, Any]) -> Iterator[str]:
    before, after = machine["before"], machine["after"]
    yield f"{machine['processor']} ({', '.join(machine['features']) or 'no features told'}), {machine['cpus']} CPUs"
    pinned = ", ".join(map(str, machine["pinned_to"])) or "none: this system cannot pin"
    governor = ", ".join(machine["governor"]) or "not told"
    throttling = "not told" if after["throttling"] is None else ", ".join(after["throttling"]) or "none"
    clock = " to ".join("not told" if m["mhz"] is None else f"{m['mhz']:.0f} MHz" for m in (before, after))
    yield f"pinned to CPU {pinned}; governor {governor}; clock {clock}; throttling {throttling}; load {before['load']}"
    for why in machine["noise"]:
        yield f"noisy run: {why}"
    if machine["noisy"]:
        yield "noisy run: ratios are given to one decimal; repeat it on a machine that does nothing else"


def _named(row: Mapping[str, Any]) -> str:
    name = row["system"] if row["kind"] == "branch" else row["system"].replace("_", " ")
    return f"{name} {row['precision']}"


def _ms(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(value: Mapping[str, float] | None, noisy: bool) -> str:
    return NOT_MEASURED if value is None else f"{value['value']:.{1 if noisy else 2}f}×"


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f}%"


def bench_text(document: Mapping[str, Any]) -> tuple[list[Grid], list[str]]:
    """Tables, and the lines below them."""
    threads = document["rows"][0]["threads"]
    title = (
        f"{document['bundle']['name']}: an image in memory to its label, batch 1, {threads} thread(s), one interleaved run"
    )
    tables = [
        (title, COLUMNS, row_cells(document)),
        ("where the time goes", PART_COLUMNS, part_cells(document)),
        ("a fresh process to its first answer", COLD_COLUMNS, cold_cells(document)),
    ]
    if energy := energy_cells(document):
        tables.append(("what an image takes", ENERGY_COLUMNS, energy))
    return tables, list(lines(document))


def tune_text(tuned: Mapping[str, Any]) -> tuple[list[Grid], list[str]]:
    """What was tried, and what is remembered."""
    rows: list[tuple[str, ...]] = []
    for trial in tuned["measured"]:
        slower = trial["times_of_chosen"]
        figures = (_ms(trial["typical_ms"]), NOT_MEASURED if slower is None else f"{slower['value']:.2f}×")
        chosen = all(trial[name] == value for name, value in tuned["chosen"].items())
        rows.append((trial["target"], trial["precision"], str(trial["threads"]), *figures, "chosen" if chosen else ""))
    columns = ("target", "precision", "threads", "ms an image", "times the chosen", "")
    left = dict.fromkeys(
        f"left out: {t['target']} {t['precision']}, {t['threads']} thread(s): {t['left_out']}"
        for t in tuned["measured"]
        if t["left_out"]
    )
    chosen = tuned["chosen"]
    said = f"run takes {chosen['target']} {chosen['precision']} with {chosen['threads']} thread(s) from now on"
    return [("a routed image", columns, rows)], [*left, f"{said}; remembered in {tuned['remembered']}"]
