"""report.html: what was built, from what, and how the gate went; one file, opens offline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from athe_export.bundle.manifest import Manifest
from athe_export.report.calibration_section import calibration_section
from athe_export.report.gallery import SHOWN, gallery
from athe_export.report.markup import grid, section
from athe_export.report.parity_section import (
    attribution_section,
    between_section,
    findings_section,
    hops_section,
    limits_section,
)
from athe_export.report.precision_section import precision_section
from athe_export.report.router_section import router_section
from athe_export.report.rows import COLUMNS, delegated, gate_said, table
from athe_export.report.style import STYLE


@dataclass(frozen=True)
class Page:
    """What the report is made from: the manifest, class names, and PNGs of changed images by their id.

    Labels and thumbnails may be missing; classes are then numbers, and changed images are described without a picture.
    """

    manifest: Manifest
    labels: Sequence[str] = ()
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)


def report_html(manifest: Manifest, labels: Sequence[str] = (), thumbnails: Mapping[int, bytes] | None = None) -> str:
    """The page as text; sections that the manifest holds nothing for are left out."""
    page = Page(manifest, labels, thumbnails or {})
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(manifest.name)}: {escape(manifest.verdict)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(manifest.name)}</h1>"
        f'<p class="verdict {escape(manifest.verdict)}"><strong>{escape(gate_said(manifest.verdict))}</strong></p>'
        + "".join(part(page) for part in SECTIONS)
        + "</body></html>\n"
    )


def _systems(page: Page) -> str:
    rows = [[escape(cell) for cell in row] for row in table(page.manifest)]
    return section("What was built", grid(COLUMNS, rows))


def _limits(page: Page) -> str:
    m = page.manifest
    confidence = (m.parity or {}).get("confidence", m.gate["limits"]["confidence"])
    return limits_section(m.parity, m.gate["split"], confidence) if m.parity else ""


def _findings(page: Page) -> str:
    return findings_section(page.manifest.parity) if page.manifest.parity else ""


def _hops(page: Page) -> str:
    return hops_section(page.manifest.parity) if page.manifest.parity else ""


def _attribution(page: Page) -> str:
    return attribution_section(page.manifest.parity, page.labels) if page.manifest.parity else ""


def _gallery(page: Page) -> str:
    lead = f"At most {SHOWN} a target: lost images first, then won ones. Before is the fp32 reference, after is the target."
    return section("Images whose answer changed", gallery(page.manifest.parity, page.labels, page.thumbnails), lead)


def _between(page: Page) -> str:
    return between_section(page.manifest.parity) if page.manifest.parity else ""


def _router(page: Page) -> str:
    return router_section(page.manifest)


def _precision(page: Page) -> str:
    return precision_section(page.manifest)


def _calibration(page: Page) -> str:
    return calibration_section(page.manifest)


def _notes(page: Page) -> str:
    return section("Notes", "".join(f"<p>{escape(note)}</p>" for note in page.manifest.notes))


def _floats(page: Page) -> str:
    parts = [
        f"<details><summary>{escape(g.target)} {escape(g.role)} {g.precision}: {g.int8_ops} int8 ops, "
        f"{g.float_ops} float ops{f'; XNNPACK: {escape(delegated(g))}' if g.xnnpack else ''}</summary>"
        f"<p>{escape(', '.join(g.float_op_names))}</p></details>"
        for g in page.manifest.graphs
    ]
    return section("What stays float", "".join(parts))


def _recipe(page: Page) -> str:
    return section("Recipe", f"<pre>{escape(page.manifest.recipe['text'])}</pre>")


def _provenance(page: Page) -> str:
    m = page.manifest
    facts = {
        "checkpoint": m.checkpoint["sha256"] or "untrained",
        "recipe": m.recipe["sha256"],
        "dataset": f"{m.dataset['name']} {m.dataset['sha256']}",
        "calibration ids": m.calibration["ids_sha256"],
        "tools": ", ".join(f"{k} {v}" for k, v in m.tools.items()),
    }
    return section("Provenance", grid(("", ""), [(k, f"<code>{escape(str(v))}</code>") for k, v in facts.items()]))


# in the order of the page; each gives an empty text where it has nothing to say
SECTIONS: tuple[Callable[[Page], str], ...] = (
    _systems,
    _limits,
    _findings,
    _hops,
    _attribution,
    _between,
    _router,
    _calibration,
    _precision,
    _gallery,
    _notes,
    _floats,
    _recipe,
    _provenance,
)
