"""The parts of the report on accuracy: limits, hops, where images were lost, and the targets against each other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from athe_export.report.markup import breakable, class_name, grid, section, verdict_cell
from athe_export.report.measured import (
    HOP_COLUMNS,
    LIMIT_COLUMNS,
    causes,
    hop_row,
    limit_figures,
    lost_and_won,
    not_measured,
)
from athe_export.report.plots import bar, span_of, strip
from athe_export.report.rows import percent

Json = dict[str, Any]


def limits_section(parity: Json, split: str, confidence: float) -> str:
    """Every limit with its interval drawn against it; limits of the whole system first, then those of single branches."""
    whole = [x for x in parity["limits"] if _system(x) in parity["targets"]]
    rest = [x for x in parity["limits"] if _system(x) not in parity["targets"]]
    lead = (
        f"{parity['images']:,} images of {split}. The ends of an interval are one-sided bounds: the one that a pass stands "
        f"on at {100 * confidence:g}%, the one that a fail stands on at least at that. The line is the limit, the "
        "shaded side is forbidden. Images needed: how many would decide. "
    )
    body = _limits_of(whole, True)
    if rest:
        body += (
            "<h3>Single branches</h3><p>On the images that the target sent to each. A branch may see few, so it fails only "
        )
        body += f"where its whole interval is on the shaded side.</p>{_limits_of(rest, False)}"
    return section("Limits", body, lead + "The whole system has to be surely inside." if whole else lead)


def findings_section(parity: Json) -> str:
    """Where a limit that does not hold was missed, and what the gate could not do."""
    found, notes = parity.get("findings") or [], parity.get("notes") or []
    lines = "".join(f"<li>{escape(line)}</li>" for line in found)
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return section("Findings", (f"<ul>{lines}</ul>" if lines else "") + said)


def hops_section(parity: Json) -> str:
    """Every step from torch to the device, measured on its own; routed first, then by branch."""
    hops: list[Json] = parity.get("hops") or []
    if not hops:
        return ""
    bounds = [x for h in hops for x in (h.get("drop_lower_pp"), h.get("drop_upper_pp")) if x is not None]
    span = span_of([0.0, *bounds])
    columns = (*HOP_COLUMNS[2:7], "", *HOP_COLUMNS[7:])
    rows: list[tuple[str, ...]] = []
    before: tuple[str, ...] = ()
    for hop in hops:
        cells = [escape(c) for c in hop_row(hop)]
        if tuple(cells[:2]) != before:
            before = tuple(cells[:2])
            rows.append((cells[0] if cells[1] in cells[0] else f"{cells[0]}, {cells[1]}",))
        lower, upper = hop.get("drop_lower_pp"), hop.get("drop_upper_pp")
        drawn = ""
        if lower is not None and upper is not None:
            point = hop.get("drop_pp")
            drawn = strip(lower, upper, limit=None, at_most=True, span=span, verdict="", measured=point)
        rows.append((*cells[2:7], drawn, *cells[7:]))
    why = "".join(f"<p>Token overlap not measured: {escape(w)}.</p>" for w in not_measured(hops))
    lead = (
        "What each step from torch to the device costs, on the same images before and after. The drop is before less after; "
        "the dashed line is 0."
    )
    return section("Hop by hop", grid(columns, rows, words=1) + why, lead)


def attribution_section(parity: Json, labels: Sequence[str]) -> str:
    """Where each system lost images: by cause, and in which classes."""
    parts = []
    for name, target in parity["targets"].items():
        found = target.get("attribution")
        if not found:
            continue
        rows = causes(found)
        most = max((n or 0 for _, n in rows), default=0)
        drawn = [(escape(c), "not measured" if n is None else str(n), "" if n is None else bar(n, most)) for c, n in rows]
        parts.append(f"<h3>{escape(name)}</h3><p>{escape(lost_and_won(found))}.</p>")
        parts.append(grid(("of the lost", "images", ""), drawn, words=1))
        worst = [
            (escape(class_name(w["label"], labels)), str(w["images"]), str(w["lost"]), str(w["won"]))
            for w in found.get("worst_classes") or []
        ]
        parts.append(grid(("worst classes", "images", "lost", "won"), worst, words=1))
    lead = "Lost: right in fp32 and wrong on the target. Won: the other way round."
    return section("Where images were lost", "".join(parts), lead)


def between_section(parity: Json) -> str:
    """Each two targets against each other at the same precision, on the gate's images."""
    rows = [
        (
            f"{escape(' and '.join(p['targets']))} {escape(p['precision'])}",
            percent(p["agreement"]),
            percent(p["router_agreement"]),
            "" if p["max_logit_difference"] is None else f"{p['max_logit_difference']:.3f}",
        )
        for p in parity.get("between", [])
    ]
    return section(
        "Between targets", grid(("targets", "same answer", "routed alike", "largest logit difference"), rows, words=1)
    )


def _system(limit: Json) -> str:
    return str(limit["name"]).rpartition(".")[0]


def _limits_of(limits: list[Json], whole: bool) -> str:
    """Limits of one kind share a scale, so that targets can be compared; single branches have one each."""
    rows: list[tuple[str, ...]] = []
    for limit in limits:
        alike = [x for x in limits if x["name"].rpartition(".")[2] == limit["name"].rpartition(".")[2]]
        kind, bounds = limit["name"], _bounds(limit)
        span = span_of([v for x in (alike if whole else [limit]) for v in (*_bounds(x), x["limit"])])
        at_most = kind.rpartition(".")[2].startswith("max_")
        verdict = limit["verdict"]
        point = limit.get("measured")
        drawn = strip(*bounds, limit=limit["limit"], at_most=at_most, span=span, verdict=verdict, measured=point)
        rows.append((breakable(kind), verdict_cell(verdict), drawn, *map(escape, limit_figures(limit))))
    columns = ["limit", "verdict", "", *LIMIT_COLUMNS]
    for column in reversed(range(3, len(columns))):  # an older bundle does not have all of them
        if not any(row[column] for row in rows):
            columns, rows = columns[:column] + columns[column + 1 :], [r[:column] + r[column + 1 :] for r in rows]
    return grid(columns, rows)


def _bounds(limit: Json) -> tuple[float, float]:
    """Both bounds; of an older bundle, which kept one, that one twice."""
    lower, upper = limit.get("lower"), limit.get("upper")
    return (limit["value"], limit["value"]) if lower is None or upper is None else (lower, upper)
