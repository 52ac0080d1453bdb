"""Pieces of HTML that the report is made of, and how it writes figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def section(title: str, body: str, lead: str = "") -> str:
    """A part of the page under its heading; empty where there is nothing to show."""
    said = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>" if body else ""


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 2) -> str:
    """A table that scrolls sideways on a narrow screen; the first `words` columns are set as words, the rest as figures.

    Cells are HTML: text is to be escaped by whoever makes them. A row of one cell is a heading over those that follow.
    """
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join(_row(row, len(columns)) for row in rows)
    return f'<div class="wide"><table class="words{words}"><tr>{head}</tr>{body}</table></div>' if body else ""


def _row(cells: Sequence[str], columns: int) -> str:
    if len(cells) == 1 < columns:
        return f'<tr class="group"><td colspan="{columns}"><span>{cells[0]}</span></td></tr>'
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def verdict_cell(verdict: str) -> str:
    """A verdict in its colour, and in words."""
    return f'<span class="{escape(verdict)}">{escape(verdict)}</span>'


def breakable(name: str) -> str:
    """A dotted name that may be broken over lines where a screen is narrow."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def class_name(label: int, labels: Sequence[str]) -> str:
    """A class in words where the labels are known."""
    return labels[label] if 0 <= label < len(labels) else f"class {label}"
