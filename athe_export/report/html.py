"""report.html: what was built, from what, and how the gate went; opens offline."""

from __future__ import annotations

from html import escape

from athe_export.bundle.manifest import Manifest
from athe_export.report.rows import COLUMNS, delegated, gate_said, percent, table

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "th,td{border-bottom:1px solid #d0d7de;padding:.3rem .7rem;text-align:right}"
    "th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}.pass{color:#1a7f37}.fail{color:#cf222e}"
    ".inconclusive,.not_gated{color:#9a6700}code{background:#f6f8fa;padding:.1rem .3rem}pre{background:#f6f8fa;padding:1rem}"
)


def report_html(manifest: Manifest) -> str:
    """The page as text."""
    head = "".join(f"<th>{escape(c)}</th>" for c in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table(manifest))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(manifest.name)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(manifest.name)}</h1>"
        f'<p class="{manifest.verdict}"><strong>{gate_said(manifest.verdict)}</strong></p>'
        f"<table><tr>{head}</tr>{body}</table>{_limits(manifest)}{_between(manifest)}{_notes(manifest)}{_floats(manifest)}"
        f"<h2>Recipe</h2><pre>{escape(manifest.recipe['text'])}</pre>{_provenance(manifest)}</html>\n"
    )


def _limits(manifest: Manifest) -> str:
    if not manifest.parity:
        return ""
    rows = "".join(
        f"<tr><td>{escape(x['name'])}</td><td>{x['limit']:g}</td><td>{x['value']:.4g}</td>"
        f'<td class="{x["verdict"]}">{x["verdict"]}</td></tr>'
        for x in manifest.parity["limits"]
    )
    confidence = manifest.gate["limits"]["confidence"]
    return (
        f"<h2>Limits</h2><p>{manifest.parity['images']} images of {escape(manifest.gate['split'])}; each value is the "
        f"one-sided {100 * confidence:g}% bound.</p><table><tr><th>limit</th><th>allowed</th><th>bound</th>"
        f"<th>verdict</th></tr>{rows}</table>"
    )


def _between(manifest: Manifest) -> str:
    """Each two targets against each other at the same precision, on the gate's images."""
    rows = "".join(
        f"<tr><td>{escape(' and '.join(p['targets']))} {escape(p['precision'])}</td><td>{percent(p['agreement'])}</td>"
        f"<td>{percent(p['router_agreement'])}</td><td>{_number(p['max_logit_difference'])}</td></tr>"
        for p in (manifest.parity or {}).get("between", [])
    )
    head = "<tr><th>targets</th><th>same answer</th><th>routed alike</th><th>largest logit difference</th></tr>"
    return f"<h2>Between targets</h2><table>{head}{rows}</table>" if rows else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _notes(manifest: Manifest) -> str:
    return (
        "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(n)}</li>" for n in manifest.notes) + "</ul>" if manifest.notes else ""
    )


def _floats(manifest: Manifest) -> str:
    parts = [
        f"<details><summary>{escape(g.target)} {escape(g.role)} {g.precision}: {g.int8_ops} int8 ops, "
        f"{g.float_ops} float ops{f'; XNNPACK: {escape(delegated(g))}' if g.xnnpack else ''}</summary>"
        f"<p>{escape(', '.join(g.float_op_names))}</p></details>"
        for g in manifest.graphs
    ]
    return "<h2>What stays float</h2>" + "".join(parts)


def _provenance(manifest: Manifest) -> str:
    facts = {
        "checkpoint": manifest.checkpoint["sha256"],
        "recipe": manifest.recipe["sha256"],
        "dataset": f"{manifest.dataset['name']} {manifest.dataset['sha256']}",
        "calibration ids": manifest.calibration["ids_sha256"],
        "tools": ", ".join(f"{k} {v}" for k, v in manifest.tools.items()),
    }
    rows = "".join(f"<tr><td>{k}</td><td><code>{escape(str(v))}</code></td></tr>" for k, v in facts.items())
    return f"<h2>Provenance</h2><table>{rows}</table>"
