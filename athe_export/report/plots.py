"""The report's drawings as inline SVG, by hand: the page opens offline and needs no plotting library to be made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# of Okabe and Ito, Color Universal Design (2008): told apart by everyone, and in grey
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
_VERDICTS = {"pass": "#1a7f37", "fail": "#b3261e", "inconclusive": "#8a5a00"}
_SOFT, _FORBIDDEN = "#57606a", "#f6d5d2"


def strip(
    lower: float,
    upper: float,
    *,
    limit: float | None,
    at_most: bool,
    span: tuple[float, float],
    verdict: str,
    measured: float | None = None,
) -> str:
    """An interval on a scale, with the limit as a line and what it forbids shaded.

    Args:
        lower, upper: ends of the interval; equal ones are drawn as a point.
        limit: None draws a line at 0.
        at_most: whether values above the limit are forbidden, or those below.
        span: ends of the scale.
        measured: what was found on the images themselves, drawn as a point.
    """
    width, left, top = 200, 8, 9

    def x(value: float) -> float:
        share = (value - span[0]) / ((span[1] - span[0]) or 1)
        return left + (width - 2 * left) * min(1.0, max(0.0, share))

    colour = _VERDICTS.get(verdict, _SOFT)
    at = x(0 if limit is None else limit)
    parts = [f'<path d="M{left} {top}H{width - left}" stroke="#d0d7de"/>']
    if limit is not None:
        start, end = (at, width - left) if at_most else (left, at)
        parts.append(f'<rect x="{start:.1f}" y="1" width="{max(0.0, end - start):.1f}" height="16" fill="{_FORBIDDEN}"/>')
    parts.append(f'<path d="M{at:.1f} 0V18" stroke="#1b1f24" stroke-dasharray="{"" if limit is not None else "2 2"}"/>')
    if upper > lower:
        parts.append(f'<path d="M{x(lower):.1f} {top}H{x(upper):.1f}" stroke="{colour}" stroke-width="4"/>')
        parts += [f'<path d="M{x(end):.1f} 4V14" stroke="{colour}" stroke-width="2"/>' for end in (lower, upper)]
    if upper <= lower or measured is not None:
        point = lower if measured is None else measured
        parts.append(f'<circle cx="{x(point):.1f}" cy="{top}" r="4" fill="{colour}"/>')
    said = f"{lower:.4g} to {upper:.4g}" + ("" if limit is None else f", limit {limit:g}")
    return f'<svg width="{width}" height="18" viewBox="0 0 {width} 18" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def span_of(values: Sequence[float]) -> tuple[float, float]:
    """A scale that holds all of them, with some room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def bar(count: int, most: int) -> str:
    """A count as a bar, `most` filling it."""
    width = 160 * count / max(1, most)
    drawn = f'<rect width="{width:.1f}" height="12" fill="{COLOURS[0]}"/>'
    return f'<svg width="160" height="12" viewBox="0 0 160 12" role="img" aria-label="{count}">{drawn}</svg>'


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y) under a name; `marked` are drawn large."""

    name: str
    points: tuple[tuple[float, float], ...]
    marked: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Axes:
    """The frame that curves are drawn into, and the scale of both axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 58.0
    right: float = 628.0
    top: float = 12.0
    bottom: float = 276.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies in the drawing."""
        across = self.left + (self.right - self.left) * (x - self.x[0]) / (self.x[1] - self.x[0])
        return across, self.bottom - (self.bottom - self.top) * (y - self.y[0]) / (self.y[1] - self.y[0])

    def drawn(self, x_title: str, y_title: str) -> list[str]:
        """Frame, grid, ticks and titles."""
        wide, high = self.right - self.left, self.bottom - self.top
        parts = [f'<rect x="{self.left}" y="{self.top}" width="{wide}" height="{high}" fill="none" stroke="#8c959f"/>']
        for tick in ticks(*self.x):
            across, _ = self.at(tick, self.y[0])
            parts.append(f'<path d="M{across:.1f} {self.top}V{self.bottom}" stroke="#eaeef2"/>')
            parts.append(f'<text x="{across:.1f}" y="{self.bottom + 16}" text-anchor="middle">{tick:g}</text>')
        for tick in ticks(*self.y):
            _, down = self.at(self.x[0], tick)
            parts.append(f'<path d="M{self.left} {down:.1f}H{self.right}" stroke="#eaeef2"/>')
            parts.append(f'<text x="{self.left - 6}" y="{down + 4:.1f}" text-anchor="end">{tick:g}</text>')
        across, down = self.left + wide / 2, self.top + high / 2
        parts.append(f'<text x="{across}" y="{self.bottom + 34}" text-anchor="middle">{escape(x_title)}</text>')
        parts.append(f'<text transform="translate(14 {down}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>')
        return parts


def plot(curves: Sequence[Curve], x_title: str, y_title: str) -> str:
    """Curves over shared axes with round ticks; the legend stands below, where it covers nothing."""
    points = [p for c in curves for p in (*c.points, *c.marked)]
    axes = _Axes(span_of([x for x, _ in points]), span_of([y for _, y in points]))
    parts = axes.drawn(x_title, y_title)
    for number, curve in enumerate(curves):
        parts += _curve(curve, number, axes) + _legend(curve, number, axes.left, axes.bottom + 54 + 18 * number)
    return (
        f'<svg viewBox="0 0 640 {axes.bottom + 44 + 18 * len(curves):g}" font-family="system-ui,sans-serif" font-size="14" '
        f'fill="#1b1f24" role="img" aria-label="{escape(y_title)} against {escape(x_title)}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


def _look(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _curve(curve: Curve, number: int, axes: _Axes) -> list[str]:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(*p) for p in curve.points))
    colour = COLOURS[number % len(COLOURS)]
    parts = [f'<polyline points="{line}" fill="none" {_look(number)}/>']
    for x, y in (axes.at(*p) for p in curve.marked):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 + number}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
    return parts


def _legend(curve: Curve, number: int, left: float, down: float) -> list[str]:
    return [
        f'<path d="M{left} {down - 4}h34" {_look(number)}/>',
        f'<text x="{left + 42}" y="{down}">{escape(curve.name)}</text>',
    ]


@dataclass(frozen=True)
class Point:
    """A point with its intervals (lower, upper) in x and y, under a short label; a colour a group, `filled` stands out."""

    x: float
    y: float
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    label: str
    group: int
    filled: bool


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Points with the intervals of both axes.

    Through the filled ones goes a line of steps: what lies below and to the right of it is beaten by one of them.
    """
    axes = _Axes(
        span_of([x for p in points for x in (p.x, *p.x_ends)]), span_of([y for p in points for y in (p.y, *p.y_ends)])
    )
    parts = axes.drawn(x_title, y_title)
    front = sorted((p for p in points if p.filled), key=lambda p: p.x)
    corners = [(p.x, p.y) for p in front[:1]]
    for before, after in itertools.pairwise(front):
        corners += [(after.x, before.y), (after.x, after.y)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(*c) for c in corners))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_SOFT}" stroke-width="1.5" stroke-dasharray="5 3"/>')
    for point in points:
        parts += _point(point, axes)
    return (
        f'<svg viewBox="0 0 640 {axes.bottom + 44:g}" font-family="system-ui,sans-serif" font-size="14" fill="#1b1f24" '
        f'role="img" aria-label="{escape(y_title)} against {escape(x_title)}">{"".join(parts)}</svg>'
    )


def _point(point: Point, axes: _Axes) -> list[str]:
    colour = COLOURS[point.group % len(COLOURS)]
    (x, y), (left, low) = axes.at(point.x, point.y), axes.at(point.x_ends[0], point.y_ends[0])
    right, high = axes.at(point.x_ends[1], point.y_ends[1])
    fill = colour if point.filled else "#fff"
    return [
        f'<path d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="1.5"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{x + 8:.1f}" y="{y - 7:.1f}" font-size="13" font-weight="600">{escape(point.label)}</text>',
    ]
