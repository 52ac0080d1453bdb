"""What int8 costs each layer and how the layers that stay float were searched: tables for a person, from the manifest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from typing import Any

from athe_export.bundle.manifest import Manifest
from athe_export.report.markup import breakable, grid, section
from athe_export.report.rows import percent

Json = dict[str, Any]
SENSITIVITY_COLUMNS = ("target", "int8 alone", "branch", "SQNR, dB", "agreement")
TRIAL_COLUMNS = ("kept float", "verdict", "drop, pp", "bounds, pp", "agreement", "slowdown", "images needed")


def sensitivity_rows(precision: Json | None, targets: Sequence[str], branches: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows under SENSITIVITY_COLUMNS, target by target and branch by branch, the most sensitive layer first.

    Each branch begins with all its layers int8 together. Empty for a bundle that was built without the measurement.

    Args:
        precision: the manifest's.
        targets, branches: in the order to show them in.
    """
    rows: list[tuple[str, ...]] = []
    for target, branch in itertools.product(targets, branches):
        record = ((precision or {}).get(target) or {}).get("sensitivity") or {}
        if (found := record.get("branches", {}).get(branch)) is not None:
            rows.append((target, "all layers together", branch, *_distance(found["together"] or {})))
            rows += [(target, row["name"], branch, *_distance(row, row.get("error"))) for row in found["ranked"]]
            rows += [(target, name, branch, "not measured", "") for name in found["not_measured"]]
    return rows


def sensitivity_of(manifest: Manifest) -> list[tuple[str, ...]]:
    """`sensitivity_rows` of a bundle."""
    return sensitivity_rows(manifest.precision, manifest.targets, [b.name for b in manifest.branches])


def search_of(manifest: Manifest, target: str) -> Json | None:
    """The record of a target's search; None where there was none."""
    return ((manifest.precision or {}).get(target) or {}).get("search")


def keep_float_line(search: Json) -> str:
    """What the search came to, as it is written into a recipe: the layers kept by the recipe and those found."""
    names = dict.fromkeys((*search["kept_by_recipe"], *search["keep_float"]))
    return "keep_float: [" + ", ".join(f'"{name}"' for name in names) + "]"


def trial_rows(search: Json) -> list[tuple[str, ...]]:
    """Rows under TRIAL_COLUMNS, in the order that the trials were made in."""
    return [_trial(trial) for trial in search["trials"]]


def precision_section(manifest: Manifest) -> str:
    """Both tables in HTML; empty where neither was asked for."""
    branches = [_branch(manifest, t, b.name) for t, b in itertools.product(manifest.targets, manifest.branches)]
    parts = ["<h3>Each layer alone in int8</h3>", *branches] if any(branches) else []
    for target in manifest.targets:
        search = search_of(manifest, target)
        if search is not None:
            trials = [(breakable(row[0]), *map(escape, row[1:])) for row in trial_rows(search)]
            parts.append(
                f"<h3>{escape(target)}: layers to keep float</h3><p><code>{escape(keep_float_line(search))}</code></p>"
            )
            parts.append(grid(TRIAL_COLUMNS, trials, words=2))
    lead = (
        "Measured on held-out training images against the fp32 graph of the same target. SQNR is the ratio of signal to "
        "quantization noise of the logits."
    )
    return section("Precision of single layers", "".join(parts), lead)


def _branch(manifest: Manifest, target: str, branch: str) -> str:
    """A branch's layers behind a line that names the worst of them: a model has dozens."""
    rows = sensitivity_rows(manifest.precision, (target,), (branch,))
    if not rows:
        return ""
    (*_, together, agreement), *alone = rows
    worst = ", ".join(f"{name} {_in_db(noise)}" for _, name, _, noise, _ in alone[:3])
    said = f"{target} {branch}: all layers together {_in_db(together)}, {agreement} the same answers; worst alone: {worst}"
    cells = [(escape(t), breakable(name), *map(escape, rest)) for t, name, *rest in rows]
    return f"<details><summary>{escape(said)}</summary>{grid(SENSITIVITY_COLUMNS, cells, words=3)}</details>"


def _in_db(cell: str) -> str:
    """A cell with its unit, where it holds a figure."""
    return f"{cell} dB" if cell[-1:].isdigit() else cell


def _distance(of: Json, error: str | None = None) -> tuple[str, str]:
    if error or of.get("agreement") is None:
        return ("no such graph" if error is None else f"no such graph: {error}", "")
    return _figure(of["sqnr_db"], 1) or "exact", percent(of["agreement"])


def _trial(trial: Json) -> tuple[str, ...]:
    kept = ", ".join(trial["keep_float"]) or "none"
    if trial["error"] is not None:
        return (kept, f"no such graph: {trial['error']}", "", "", "", "", "")
    bounds = f"{_figure(trial['drop_lower_pp'])} to {_figure(trial['drop_upper_pp'])}"
    needed, slower = _figure(trial["images_needed"], 0), _figure(trial["slowdown"])
    return (kept, str(trial["verdict"]), _figure(trial["drop_pp"]), bounds, percent(trial["agreement"]), slower, needed)


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
