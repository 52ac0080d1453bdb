"""A run of the peers as tables, as Markdown for docs/benchmarks.md, and as a drawing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from athe_export.report.plots import COLOURS, ticks
from peers.peer import OURS

Grid = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, columns, rows
NOT_MEASURED = "not measured"
COLUMNS = (
    *("peer", "graph", "vs torch eager, dense", "vs its own dense", "vs fastest dense int8"),
    *("graph alone vs torch eager", "of its floor", "agrees with fp32", "top-1"),
)
_RATIOS = ("image_vs_torch_eager_dense", "image_vs_own_dense", "image_vs_fastest_dense_int8", "graph_vs_torch_eager_dense")


def row_cells(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under COLUMNS; of a noisy run ratios have one decimal and no more."""
    noisy = document["machine"]["noisy"]
    return [
        (
            *(row["peer"], row["graph"]),
            *(_times(row[name], noisy) for name in _RATIOS),
            *(_percent(row[name]) for name in ("share_of_floor", "agreement", "top1")),
        )
        for row in document["rows"]
        if row["not_measured"] is None
    ]


def rate_cells(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Products of matrices, and their rates."""
    return [
        (r["engine"], r["precision"], f"{r['rows']} × {r['inputs']} × {r['outputs']}", f"{r['gflops']:.0f}")
        for r in document["rates"]
        if r["not_measured"] is None
    ]


def floor_cells(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Floors against torch eager's dense graph: how many times as fast a graph could be at most."""
    dense = ("torch eager fp32", "dense")
    eager = next((row["graph_ms"] for row in document["rows"] if (row["peer"], row["graph"]) == dense), None)
    return [
        (
            *(f["graph"], f["form"], f["precision"], f"{f['mmacs_layers']:.0f}", f"{f['mmacs_attention']:.0f}"),
            NOT_MEASURED if None in (eager, f["floor_ms"]) else f"{eager / f['floor_ms']:.1f}×",
        )
        for f in document["floors"]
    ]


def tables(document: Mapping[str, Any]) -> list[Grid]:
    """Ratios, rates and floors."""
    title = f"{document['images']} images, batch 1, one thread, one interleaved run; × is times as fast"
    return [
        (title, COLUMNS, row_cells(document)),
        ("this CPU's rates", ("engine", "precision", "rows × inputs × outputs", "GFLOP/s"), rate_cells(document)),
        (
            "floors",
            ("graph", "form", "precision", "million MACs in layers", "in attention", "at most, vs torch eager dense"),
            floor_cells(document),
        ),
    ]


def lines(document: Mapping[str, Any], goals: Mapping[str, float | None]) -> list[str]:
    """What stands below: the machine, what decides, and by name what was not measured."""
    machine = document["machine"]
    found = [f"{machine['processor']} ({', '.join(machine['features']) or 'no features told'}), {machine['cpus']} CPUs"]
    found.append(", ".join(f"{name} {version}" for name, version in machine["packages"].items()))
    found += [f"noisy run, ratios to one decimal: {why}" for why in machine["noise"]]
    if document["fastest_dense_int8"]:
        found.append(f"fastest dense int8: {document['fastest_dense_int8']}")
    found += [f"{name}: {value:g}" for name, value in goals.items() if value is not None]
    if lacking := [name for name, value in goals.items() if value is None]:
        found.append(f"{NOT_MEASURED}: " + "; ".join(lacking))
    for peer, why in _reasons(document):
        found.append(f"{NOT_MEASURED}: {peer}: {why}")
    return found


def _times(value: Mapping[str, float] | None, noisy: bool) -> str:
    return "" if value is None else f"{value['value']:.{1 if noisy else 2}f}×"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _reasons(document: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(peer: its graphs, why), once where all its graphs share the reason."""
    seen: dict[tuple[str, str], list[str]] = {}
    for row in document["rows"]:
        if row["not_measured"] is not None:
            seen.setdefault((row["peer"], row["not_measured"]), []).append(row["graph"])
    for rate in document["rates"]:
        if rate["not_measured"] is not None:
            peer = f"rate of {rate['engine']} {rate['precision']}"
            seen.setdefault((peer, rate["not_measured"]), []).append(f"{rate['rows']}x{rate['inputs']}x{rate['outputs']}")
    return [(f"{peer} ({', '.join(graphs)})", why) for (peer, why), graphs in seen.items()]


def markdown(document: Mapping[str, Any], goals: Mapping[str, float | None], command: str) -> str:
    """Tables and lines as they stand in docs/benchmarks.md, below the command that printed them."""
    parts = [f"```\n{command}\n```"]
    for title, columns, rows in tables(document):
        grid = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        grid += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        parts += [f"{title[0].upper()}{title[1:]}:", "\n".join(grid)]
    parts.append("\n".join(f"- {line}" for line in lines(document, goals)))
    return "\n\n".join(parts) + "\n"


def drawing(document: Mapping[str, Any]) -> str:
    """A bar a row, as long as it is times as fast as torch eager's dense graph; ours in another colour."""
    bars = [
        (f"{row['peer']}, {row['graph']}", row["image_vs_torch_eager_dense"]["value"], row["family"] == OURS)
        for row in document["rows"]
        if row["image_vs_torch_eager_dense"] is not None and row["graph"] != "router"
    ]
    bars.sort(key=lambda bar: bar[1])
    left, wide, high = 330, 400, 22
    longest = max((value for _, value, _ in bars), default=1.0)
    parts = []
    for tick in ticks(0.0, longest):
        x = left + wide * tick / longest
        parts.append(f'<path d="M{x:.1f} 4V{8 + high * len(bars)}" stroke="#eaeef2"/>')
        parts.append(f'<text x="{x:.1f}" y="{24 + high * len(bars)}" text-anchor="middle">{tick:g}</text>')
    for number, (name, value, own) in enumerate(bars):
        y, length = 6 + high * number, wide * value / longest
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="16" fill="{COLOURS[1 if own else 0]}"/>')
        parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 13}">{value:.1f}×</text>')
    bottom = 44 + high * len(bars)
    said = "times as fast as torch eager on the dense model, an image's pixels to its answer"
    parts.append(f'<text x="{left + wide / 2}" y="{bottom}" text-anchor="middle">{said}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 60} {bottom + 10}" '
        f'font-family="system-ui,sans-serif" font-size="13" fill="#1b1f24" role="img" aria-label="{said}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
