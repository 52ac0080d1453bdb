"""report.html of an evaluation: one file that opens offline, made from the document and the pictures of its examples."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from athe_export.evaluation.drawings import accuracy_against_latency, calibration_plots, robustness_plots, speed_strip
from athe_export.evaluation.tables import (
    Grid,
    branches_grid,
    calibration_grids,
    cells_grid,
    commands,
    confusion_grids,
    recipes_grid,
    robustness_grid,
    routers_grid,
    subset_grid,
    systems_grid,
)
from athe_export.report.markup import grid, section, verdict_cell
from athe_export.report.style import STYLE

Document = Mapping[str, Any]
_VERDICTS = ("pass", "fail", "inconclusive", "not_gated")
_COLOURS = {"win": "pass", "loss": "fail", "trade-off": "inconclusive", "open": "lead", "note": "lead"}


def page_html(document: Document, thumbnails: Mapping[int, bytes]) -> str:
    """The page as text.

    Args:
        thumbnails: PNGs of the examples by image id.
    """
    title = title_of(document)
    kind, said = size_said(document)
    body = "".join(part(document) for part in SECTIONS[:-1]) + _examples(document, thumbnails) + SECTIONS[-1](document)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p class="verdict {kind}"><strong>{escape(said)}</strong></p>{body}</body></html>\n'
    )


def title_of(document: Document) -> str:
    count = len(document["recipes"])
    return f"Evaluation of {count} recipe{'' if count == 1 else 's'} on {document['dataset']['name']}"


def size_said(document: Document) -> tuple[str, str]:
    """How far the figures carry: a class of the style sheet, and a sentence."""
    if document["quick"]:
        return "inconclusive", "A quick evaluation: few images, few queries, small gates. It shows that everything runs."
    count = document["images"]["all"]["images"]
    return "lead", f"The whole protocol: {count:,} images, {document['plan']['runs']} runs of all systems together."


def grid_html(found: Grid | None, above: str = "") -> str:
    """A table as a section of its own; empty where there is none."""
    return section(found.title, above + table_html(found), found.lead) if found else ""


def table_html(found: Grid) -> str:
    return grid(found.columns, [[_cell(text) for text in row] for row in found.rows], words=found.words)


def _cell(text: str) -> str:
    return verdict_cell(text) if text in _VERDICTS else escape(text)


def _findings(document: Document) -> str:
    items = "".join(
        f'<p><b class="{_COLOURS[f["kind"]]}">{escape(f["kind"])}</b> {escape(f["text"])}</p>' for f in document["findings"]
    )
    return section("What was found", items, "Made from the figures below. What an interval does not show is not said.")


def _systems(document: Document) -> str:
    drawn = accuracy_against_latency(document)
    lead = "Numbers are those of the table below. Filled points are the Pareto front. Crosses are 95% intervals."
    figure = f'<figure class="plot">{drawn}</figure><p class="lead">{lead}</p>' if drawn else ""
    return grid_html(systems_grid(document), figure)


def _branches(document: Document) -> str:
    found = branches_grid(document)
    if found is None:
        return ""
    rows = [r for r in document["systems"] if r["policy"].startswith("always ")]
    strips = [speed_strip(row, rows) for row in rows]
    cells = [[*(_cell(c) for c in row), strip] for row, strip in zip(found.rows, strips, strict=True)]
    lead = f"{found.lead} The line of the drawing is the dense model; what lies in the shaded part is slower."
    return section(found.title, grid((*found.columns, ""), cells, words=found.words), lead)


def _routers(document: Document) -> str:
    return grid_html(routers_grid(document))


def _confusion(document: Document) -> str:
    parts = [f"<h3>{escape(found.title)}</h3>{table_html(found)}" for found in confusion_grids(document)]
    lead = "What each image needed against where the router sent it; and where it sent what the subset's judge calls simple."
    return section("Router: confusion", "".join(parts), lead)


def _calibration(document: Document) -> str:
    parts = []
    primary = [r for r in document["routers"] if r["primary"]]
    for router, figures in zip(primary, calibration_grids(document), strict=True):
        title = f"{router['system']}, gate: {router['verdict']}"
        parts.append(f"<h3>{escape(title)}</h3>{_plots(calibration_plots(router))}")
        parts.append(f"<details><summary>as a table</summary>{table_html(figures)}</details>")
    lead = (
        "Images in ten groups by the router's score. Needed is the share for which only a harder branch than the easiest is "
        "right. A score need not be that share: what counts is that what is needed, and the gap between the branches, grow "
        "with it."
    )
    return section("Router: calibration", "".join(parts), lead)


def _subset(document: Document) -> str:
    return grid_html(subset_grid(document))


def _robustness(document: Document) -> str:
    return grid_html(robustness_grid(document), _plots(robustness_plots(document)))


def _plots(drawn: Sequence[str]) -> str:
    """Drawings beside each other where there is room."""
    figures = "".join(f'<figure class="plot">{svg}</figure>' for svg in drawn)
    return f'<div class="plots">{figures}</div>' if figures else ""


def _examples(document: Document, thumbnails: Mapping[int, bytes]) -> str:
    judge = document["images"]["subset"].get("judge")
    lead = f"Of both halves of the balanced subset, evenly over the probability that {judge} in fp32 gives the true class."
    parts = []
    for half in ("simple", "complex"):
        if cards := "".join(_card(e, thumbnails.get(e["id"])) for e in document["examples"] if e["half"] == half):
            parts.append(f'<h3>judged {half}</h3><div class="gallery">{cards}</div>')
    return section("Simple and complex images", "".join(parts), lead)


def _card(example: Mapping[str, Any], png: bytes | None) -> str:
    name, picture = escape(example["class"]), ""
    if png is not None:
        picture = f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    sent = "<br>".join(f"{escape(system)}: {escape(branch)}" for system, branch in example["sent"].items())
    return (
        f"<figure>{picture}<figcaption><b>{name}</b>probability {100 * example['probability']:.0f}% · #{example['id']}<br>"
        f"{sent}</figcaption></figure>"
    )


def _provenance(document: Document) -> str:
    cells = cells_grid(document)
    machine, plan = document["machine"], document["plan"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"Machine: {machine['processor']} ({', '.join(machine['features']) or 'no features told'}), {machine['cpus']} CPUs; "
        f"{packages}; athe-export {document['athe_export']}",
        f"Seed {plan['seed']}; ids of images are in evaluation.json",
        *(f"Noise: {why}" for why in machine["noise"]),
        *(f"Left out: {x['system']}: {x['why']}" for x in document["left_out"]),
        *(f"Note: {note}" for note in document["notes"]),
    ]
    said = "".join(f"<p>{escape(line)}</p>" for line in lines)
    listed = "".join(f"<li><code>{escape(command)}</code></li>" for command in commands(document))
    hidden = f"<details><summary>{len(cells.rows)} cells</summary><p>{escape(cells.lead)}</p>{table_html(cells)}</details>"
    found = recipes_grid(document)
    recipes = f"<h3>{found.title}</h3><p class='lead'>{escape(found.lead)}</p>{table_html(found)}"
    listed = f"<h3>Commands</h3><ol>{listed}</ol>"
    return section("Where the figures come from", said + recipes + listed + hidden)


# in the order of the page; each gives an empty text where it has nothing to say. Examples stand before the last one.
SECTIONS: Sequence[Callable[[Document], str]] = (
    _findings,
    _systems,
    _branches,
    _routers,
    _subset,
    _confusion,
    _calibration,
    _robustness,
    _provenance,
)
