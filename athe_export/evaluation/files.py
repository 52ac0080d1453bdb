"""What an evaluation leaves in its folder: report.html, report.md, evaluation.json and CSV files, from one document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from athe_export.evaluation.cells import replace_file
from athe_export.evaluation.page import page_html, size_said, title_of
from athe_export.evaluation.tables import (
    Grid,
    branches_grid,
    calibration_grids,
    cells_grid,
    commands,
    confusion_grids,
    csv_text,
    examples_grid,
    recipes_grid,
    robustness_grid,
    routers_grid,
    subset_grid,
    systems_grid,
)
from athe_export.report.markdown import plain

Document = Mapping[str, Any]
CSV = ("systems", "robustness", "routers", "recipes", "cells")


def write_files(document: Document, thumbnails: Mapping[int, bytes], folder: Path) -> tuple[Path, ...]:
    """Writes them, each whole or not at all, and gives their paths.

    Raises:
        EnvironmentFailure: the folder cannot be written.
    """
    texts = {
        "report.html": page_html(document, thumbnails),
        "report.md": markdown(document),
        "evaluation.json": json.dumps(document, indent=1) + "\n",
        **{f"{name}.csv": csv_text(csv_rows(document, name)) for name in CSV},
    }
    for name, text in texts.items():
        replace_file(folder / name, text)
    return tuple(folder / name for name in texts)


def csv_rows(document: Document, name: str) -> list[Mapping[str, Any]]:
    """The rows of a CSV file: those of the document's list of that name; of routers, one a group of scores."""
    if name == "routers":
        return [{"system": r["system"], **group} for r in document["routers"] for group in r["calibration"]]
    rows: list[Mapping[str, Any]] = document[name]
    return rows


def markdown(document: Document) -> str:
    """The report in Markdown, without its drawings."""
    parts = [f"# {plain(title_of(document))}", f"**{plain(size_said(document)[1])}**", "## What was found"]
    parts.append("\n".join(f"- **{f['kind']}**: {plain(f['text'])}" for f in document["findings"]))
    grids = (
        systems_grid(document),
        branches_grid(document),
        routers_grid(document),
        subset_grid(document),
        *confusion_grids(document),
        *calibration_grids(document),
        robustness_grid(document),
        examples_grid(document),
        recipes_grid(document),
        cells_grid(document),
    )
    parts += [_grid(found) for found in grids if found is not None]
    parts.append("## Commands\n\n" + "\n".join(f"{n}. `{line}`" for n, line in enumerate(commands(document), 1)))
    return "\n\n".join(parts) + "\n"


def _grid(found: Grid) -> str:
    lines: list[Sequence[str]] = [found.columns, ["---"] * len(found.columns)]
    for row in found.rows:  # a heading over rows is a row with empty cells here
        lines.append([*row, *[""] * (len(found.columns) - len(row))])
    table = "\n".join("| " + " | ".join(c if c == "---" else plain(c) for c in line) + " |" for line in lines)
    return "\n\n".join(part for part in (f"## {plain(found.title)}", plain(found.lead), table) if part)
