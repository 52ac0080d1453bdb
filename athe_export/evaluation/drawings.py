"""The drawings of an evaluation's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from athe_export.evaluation.tables import deployed, system_name
from athe_export.report.plots import Curve, Point, plot, scatter, strip

Document = Mapping[str, Any]


def accuracy_against_latency(document: Document) -> str:
    """Every deployed system that both was measured of; empty without one."""
    recipes = [r["name"] for r in document["recipes"]]
    points = [
        Point(
            row["latency_ms"]["value"],
            100 * row["top1"]["value"],
            (row["latency_ms"]["lower"], row["latency_ms"]["upper"]),
            (100 * row["top1"]["lower"], 100 * row["top1"]["upper"]),
            str(number),
            recipes.index(row["recipe"]),
            bool(row["pareto"]),
        )
        for number, row in enumerate(deployed(document), 1)
        if row["latency_ms"] and row["top1"]
    ]
    return scatter(points, "ms an image, one thread", "top-1, %") if points else ""


def speed_strip(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """How many times as fast as the dense model, on a scale that `rows` share; empty where that was not measured."""
    found = row["times_as_fast_as_dense"]
    if found is None:
        return ""
    most = max(r["times_as_fast_as_dense"]["upper"] for r in rows if r["times_as_fast_as_dense"])
    verdict = "pass" if found["lower"] > 1 else "fail" if found["upper"] < 1 else "inconclusive"
    return strip(
        found["lower"], found["upper"], limit=1.0, at_most=False, span=(0.0, 1.05 * max(1.0, most)), verdict=verdict,
        measured=found["value"],
    )  # fmt: skip


def calibration_plots(router: Mapping[str, Any]) -> list[str]:
    """Over the router's score: for how many images a harder branch was needed; what the easiest and hardest have right."""
    bins, title = router["calibration"], "router score, mean of the group"
    ends = (min(b["score"] for b in bins), max(b["score"] for b in bins))
    needed = [
        Curve("a harder branch was needed", tuple((b["score"], 100 * b["needed"]["value"]) for b in bins)),
        *(
            Curve(f"its 95% interval, {end}", tuple((b["score"], 100 * b["needed"][end]) for b in bins))
            for end in ("upper", "lower")
        ),
        Curve("as many as the score says", tuple((x, 100 * x) for x in ends)),
    ]
    right = [
        Curve(f"top-1 of {router['branches'][at]}", tuple((b["score"], 100 * b[name]) for b in bins))
        for at, name in ((0, "easiest"), (-1, "hardest"))
    ]
    return [plot(needed, title, "% of the images"), plot(right, title, "top-1, %")]


def robustness_plots(document: Document) -> list[str]:
    """Of each corruption: top-1 of every recipe, then the easiest branch's share of those with a router."""
    rows = [r for r in document["robustness"] if r["primary"]]
    drawn = []
    for name, of in document["corruptions"].items():
        own = [r for r in rows if r["corruption"] in ("none", name)]
        said, unit = name.replace("_", " "), of["unit"]
        if own:
            curves = _curves(own, lambda r: 100 * r["top1"]["value"])
            drawn.append(plot(curves, f"{said}: {unit}", "top-1, %"))
        if routed := [r for r in own if r["share_easiest"] is not None]:
            curves = _curves(routed, lambda r: 100 * r["share_easiest"])
            drawn.append(plot(curves, f"{said}: {unit}", "to the easiest branch, %"))
    return drawn


def _curves(rows: Sequence[Mapping[str, Any]], y: Any) -> list[Curve]:
    named = dict.fromkeys(r["system"] for r in rows)
    of = {name: sorted((r for r in rows if r["system"] == name), key=lambda r: r["level"]) for name in named}
    return [Curve(_marked(own[0]), tuple((r["level"], y(r)) for r in own)) for own in of.values()]


def _marked(row: Mapping[str, Any]) -> str:
    """A system's name, with its gate's verdict where that is no pass."""
    return system_name(row) + ("" if row["verdict"] == "pass" else f", gate: {row['verdict']}")
