"""The table every output shows: one row a branch, from the manifest alone."""

from __future__ import annotations

from typing import Any

from athe_export.bundle.manifest import GraphEntry, Manifest

COLUMNS = (
    "target",
    "branch",
    "tokens kept",
    "heads",
    "MMACs",
    "bytes",
    "fp32 top-1",
    "top-1",
    "agreement",
    "share routed",
    "verdict",
)


def gate_said(verdict: str) -> str:
    """How the gate went when the bundle was built, in a sentence."""
    return {
        "pass": "The parity gate passed.",
        "fail": "The parity gate failed; this bundle was not put in place.",
        "inconclusive": "The gate's images are too few to decide; this bundle was not put in place.",
        "control": "Not gated: these are controls, which bench holds a bundle against.",
        "not_gated": "Not gated: the weights were never trained; shapes and speed only, accuracy means nothing.",
    }.get(verdict, f"The gate's verdict was {verdict}.")


def table(manifest: Manifest) -> list[tuple[str, ...]]:
    """Rows under COLUMNS: the router, each branch on the images routed to it, and the routed whole, per target and
    precision."""
    rows = []
    for target, precision in manifest.systems:
        graphs = manifest.graphs_of(target, precision)
        found = ((manifest.parity or {}).get("targets") or {}).get(manifest.system_name(target, precision))
        if "router" in graphs:
            rows.append(_row(graphs["router"], target, "router"))
        for branch in manifest.branches:
            kept = " → ".join(str(p.tokens) for p in branch.prune) or "all"
            of = found["branches"][branch.name] if found else {}
            share = found["share"][branch.name] if found else None
            rows.append(_row(graphs[branch.name], target, branch.name, kept, str(branch.heads), of, share))
        rows.append(_routed(manifest, (target, precision), found, list(graphs.values())))
    return rows


def _row(
    graph: GraphEntry,
    target: str,
    name: str,
    kept: str = "",
    heads: str = "",
    of: dict[str, float | None] | None = None,
    share: float | None = None,
) -> tuple[str, ...]:
    of = of or {}
    size, mmacs = f"{graph.bytes:,}", f"{graph.mmacs:.1f}"
    size += f" of {graph.whole_bytes:,}" if graph.borrows else ""
    top = [percent(of.get("reference_top1")), percent(of.get("top1")), percent(of.get("agreement"))]
    return (target, f"{name} {graph.precision}", kept, heads, mmacs, size, *top, percent(share), "")


def _routed(
    manifest: Manifest, system: tuple[str, str], found: dict[str, Any] | None, graphs: list[GraphEntry]
) -> tuple[str, ...]:
    target, name = system[0], f"routed {system[1]}"
    size = f"{manifest.stored_bytes(graphs):,}"
    if not found or not manifest.parity:
        return (target, name, "", "", "", size, "", "", "", "", manifest.verdict)
    reference = percent(manifest.parity["reference"]["top1"])
    shares = {b.name: found["share"][b.name] for b in manifest.branches}
    by_role = {g.role: g.mmacs for g in graphs}
    mmacs = by_role.get("router", 0.0) + sum(by_role[name] * share for name, share in shares.items())
    top = [reference, percent(found["top1"]), percent(found["agreement"])]
    return (target, name, "", "", f"{mmacs:.1f}", size, *top, "100.0%", manifest.verdict)


def delegated(graph: GraphEntry) -> str:
    """What XNNPACK takes of a TFLite graph, in words; empty for other targets."""
    if graph.xnnpack is None:
        return ""
    outside = graph.xnnpack["outside"]
    count = graph.xnnpack["partitions"]
    words = f"{count} partition{'s' if count != 1 else ''}, {len(outside)} ops outside"
    return words + (f": {', '.join(outside)}" if outside else "")


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"
