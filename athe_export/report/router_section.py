"""The part of the report on the router: accuracy against cost over its thresholds."""

from __future__ import annotations

from html import escape

from athe_export.bundle.manifest import FrontierPoint, Manifest
from athe_export.report.markup import grid, section
from athe_export.report.plots import Curve, plot

_ROWS = 11  # of the table that is always open, about


def router_section(manifest: Manifest) -> str:
    """Plot and tables; empty for a single branch, untrained weights and older bundles."""
    router = manifest.router
    if router is None or not router.frontier:
        return ""
    found = sorted(router.frontier.items(), key=lambda item: (item[0] != "reference", item[0]))
    curves = [Curve(_curve_name(name), _line(points), _line(_chosen(points))) for name, points in found]
    drawn = f'<figure class="plot">{plot(curves, "mean MMACs an image, router included", "top-1, %")}</figure>'
    names = tuple(b.name for b in manifest.branches)
    tables = "".join(_table(name, points, names) for name, points in found)
    measured = router.frontier_images
    lead = (
        f"Top-1 and cost over thresholds, on {measured.get('images', 0):,} images of {measured.get('split', '')}, which the "
        "branches were not trained on. Each curve has its own router's scores; the branches are the fp32 ones. A circle is "
        "the threshold in use."
    )
    return section("Router: accuracy against cost", drawn + tables, lead)


def _curve_name(name: str) -> str:
    return "fp32 reference" if name == "reference" else f"{name}, int8 router"


def _line(points: tuple[FrontierPoint, ...]) -> tuple[tuple[float, float], ...]:
    return tuple((p.mmacs, 100 * p.top1) for p in points)


def _chosen(points: tuple[FrontierPoint, ...]) -> tuple[FrontierPoint, ...]:
    return tuple(p for p in points if p.chosen)


def _table(name: str, points: tuple[FrontierPoint, ...], branches: tuple[str, ...]) -> str:
    """A tenth part of the points in the open, all of them behind a click."""
    step = max(1, round(len(points) / _ROWS))
    few = [p for i, p in enumerate(points) if i % step == 0 or p.chosen or i == len(points) - 1]
    columns = ("score bound", *(f"to {b}" for b in branches), "top-1", f"against {branches[-1]} alone", "mean MMACs", "")
    every = "" if len(few) == len(points) else (
        f"<details><summary>all {len(points)} points</summary>{grid(columns, _rows(points, points), words=1)}</details>"
    )  # fmt: skip
    return f"<h3>{escape(_curve_name(name))}</h3>{grid(columns, _rows(few, points), words=1)}{every}"


def _rows(
    shown: list[FrontierPoint] | tuple[FrontierPoint, ...], points: tuple[FrontierPoint, ...]
) -> list[tuple[str, ...]]:
    hardest = next((p.top1 for p in points if p.share[-1] == 1), None)
    return [
        (
            ", ".join(f"{b:.4f}" for b in p.bounds),
            *(f"{100 * s:.1f}%" for s in p.share),
            f"{100 * p.top1:.2f}%",
            "" if hardest is None else f"{100 * (p.top1 - hardest):+.2f} pp",
            f"{p.mmacs:.1f}",
            "in use" if p.chosen else "",
        )
        for p in shown
    ]
