"""How int8 ranges were found, and how much hangs on the calibration images: tables for a person, from the manifest."""

from __future__ import annotations

from html import escape
from typing import Any

from athe_export.bundle.manifest import Manifest
from athe_export.report.markup import grid, section

Json = dict[str, Any]
TRIAL_COLUMNS = ("target", "calibrator", "agreement", "SQNR, dB", "top-1", "images")
DRAW_COLUMNS = ("target", "calibration images", "agreement", "top-1", "routed alike")


def trial_rows(calibration: Json) -> list[tuple[str, ...]]:
    """Rows under TRIAL_COLUMNS: what `calibrator: auto` tried, the chosen one said; empty where nothing was compared."""
    return [
        (choice["target"], _named(trial["calibrator"], choice), *_measured(trial))
        for choice in calibration.get("choices", [])
        for trial in choice["trials"]
    ]


def draw_rows(calibration: Json) -> list[tuple[str, ...]]:
    """Rows under DRAW_COLUMNS: int8 by each set of calibration images, then how far apart they are, target by target."""
    rows: list[tuple[str, ...]] = []
    stability = calibration.get("stability") or {}
    for target, found in stability.get("targets", {}).items():
        for number, draw in enumerate(found["draws"]):
            said = f"draw {number}" if number else "the recipe's set"
            rows.append((target, said, *(_percent(draw[name]) for name in ("agreement", "top1", "router_agreement"))))
        names = ("agreement_spread_pp", "top1_spread_pp", "router_agreement_spread_pp")
        rows.append((target, "largest less smallest", *(_points(found[name]) for name in names)))
    return rows


def calibration_section(manifest: Manifest) -> str:
    """Both tables in HTML; what was not measured is said. Empty for a bundle of an earlier version."""
    calibration = manifest.calibration
    if "calibrators" not in calibration:
        return ""
    used = ", ".join(f"{target}: {name}" for target, name in calibration["calibrators"].items()) or "none: nothing is static"
    parts = [f"<p>{calibration['images']:,} images of {escape(calibration['split'])}; calibrator {escape(used)}.</p>"]
    if tried := trial_rows(calibration):
        parts.append(f"<h3>Calibrators compared</h3>{_grid(TRIAL_COLUMNS, tried)}")
    if drawn := draw_rows(calibration):
        parts.append(f"<h3>Stability over calibration images</h3>{_grid(DRAW_COLUMNS, drawn)}")
    parts += [f"<p>{escape(line)}</p>" for line in _lacking(calibration["stability"])]
    lead = ""
    if tried or drawn:
        lead = "Measured against the fp32 graph on held-out images, each in the branch that the reference sends it to."
    return section("Calibration", "".join(parts), lead)


def _lacking(stability: Json | None) -> list[str]:
    if stability is None:
        return ["Stability over calibration images: not measured (parity.stability_draws)."]
    return [
        f"Stability over calibration images, {target}: not measured: {why}."
        for target, why in stability["not_measured"].items()
    ]


def _named(calibrator: str, choice: Json) -> str:
    return f"{calibrator} (chosen)" if calibrator == choice["calibrator"] else calibrator


def _measured(trial: Json) -> tuple[str, ...]:
    branches = [of_role for of_role in trial["roles"].values() if of_role["top1"] is not None]
    images = sum(b["images"] for b in branches)
    top1 = sum(b["top1"] * b["images"] for b in branches) / images if images else None
    noise = "exact" if trial["sqnr_db"] is None else f"{trial['sqnr_db']:.1f}"
    return _percent(trial["agreement"]), noise, _percent(top1), f"{images:,}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} pp"


def _grid(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return grid(columns, [tuple(map(escape, row)) for row in rows])
