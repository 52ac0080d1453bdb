"""The curves of a training log as SVG, drawn by hand: training must run where no plotting library is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

Row = dict[str, str]
Series = list[tuple[int, float]]  # position of the epoch in the log, value

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 720, 200, 60, 30, 50


def draw_curves(rows: Sequence[Row], paths: Sequence[str]) -> str:
    """An SVG with two plots over the epochs of the log: the loss of each kind of phase, and top-1 of each path held out."""
    kinds = list(dict.fromkeys(r["phase"] for r in rows))
    losses = {f"loss, {k}": _series(rows, "loss", 1, k) for k in kinds}
    top1 = {f"{p}, %": _series(rows, p, 100) for p in paths}
    height = 2 * _HEIGHT + _TOP + _GAP + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + _LEFT + 160} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_plot("training loss", losses, rows, _TOP),
        *_plot("top-1 on held-out images", top1, rows, _TOP + _HEIGHT + _GAP),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _series(rows: Sequence[Row], column: str, factor: float, phase: str | None = None) -> Series:
    chosen = [(i, r.get(column) or "") for i, r in enumerate(rows) if phase in (None, r["phase"])]
    return [(i, factor * float(value)) for i, value in chosen if value]


def _plot(title: str, series: dict[str, Series], rows: Sequence[Row], top: int) -> list[str]:
    """One plot with its frame, range, borders between phases, curves and legend."""
    values = [v for s in series.values() for _, v in s]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    spread, last = (high - low) or 1.0, max(1, len(rows) - 1)

    def x(position: float) -> float:
        return _LEFT + _WIDTH * position / last

    def y(value: float) -> float:
        return top + _HEIGHT * (1 - (value - low) / spread)

    parts = [
        f'<text x="{_LEFT}" y="{top - 8}" font-weight="bold">{title}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{high:.4g}</text>',
        f'<text x="{_LEFT - 6}" y="{top + _HEIGHT}" text-anchor="end">{low:.4g}</text>',
        f'<text x="{_LEFT + _WIDTH}" y="{top + _HEIGHT + 16}" text-anchor="end">{len(rows)} epochs</text>',
    ]
    for i, (before, after) in enumerate(pairwise(rows)):
        if (before["phase"], before.get("image_size")) != (after["phase"], after.get("image_size")):
            parts.append(f'<path d="M{x(i + 0.5):.1f} {top}v{_HEIGHT}" stroke="#ccc" stroke-dasharray="4"/>')
    for number, (name, points) in enumerate((n, s) for n, s in series.items() if s):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="2" fill="{colour}"/>' for i, v in points[-1:]]
        legend = f'x="{_LEFT + _WIDTH + 10}" y="{top + 14 + 18 * number}" fill="{colour}"'
        parts.append(f"<text {legend}>{escape(name)} {points[-1][1]:.4g}</text>")
    return parts
