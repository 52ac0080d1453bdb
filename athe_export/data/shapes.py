"""A generated dataset: 100 classes (10 glyphs x 10 colours), half of them easy by construction, half hard.

It exists so that a first build needs no download and yet has something to route: a *simple* image shows one large
glyph on a calm ground; a *complex* one shows it smaller, among grey distractors, partly covered, in noise. All
arithmetic is in integers and the random stream is numpy's frozen `RandomState`, so every machine draws the same pixels.
"""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from athe_export.preprocessing import Pixels

SIZE = 32
FINE = 3  # sub-samples a pixel side
GLYPHS = ("disc", "ring", "square", "frame", "triangle", "plus", "cross", "crescent", "bar", "chevron")
COLOURS = ("red", "orange", "yellow", "lime", "green", "cyan", "blue", "violet", "pink", "white")
SIZES = {"train": 30_000, "holdout": 4_000, "test": 6_000}
_SEEDS = {"train": 1 << 20, "holdout": 2 << 20, "test": 3 << 20}
_RGB = [
    tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h, 1, 1)) for h in (0, 0.08, 0.16, 0.25, 0.36, 0.5, 0.62, 0.75, 0.88)
]
_RGB.append((255, 255, 255))
_Mask = npt.NDArray[np.bool_]
_Grid = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shapes:
    """The dataset; `is_complex(split, i)` is the difficulty it was drawn with."""

    @property
    def name(self) -> str:
        return "shapes"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(SIZES)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"{colour} {glyph}" for glyph in GLYPHS for colour in COLOURS)

    @cached_property
    def digest(self) -> str:
        """Of 256 images a split, drawn at random once for all: every glyph, colour and difficulty is among them."""
        digest = hashlib.sha256()
        for split in self.splits:
            for index in np.random.RandomState(0).permutation(SIZES[split])[:256]:
                digest.update(self.image(split, int(index)).tobytes())
        return digest.hexdigest()

    def size(self, split: str) -> int:
        return SIZES[split]

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        return np.arange(SIZES[split], dtype=np.int64) // 2 * 37 % 100

    def is_complex(self, split: str, index: int) -> bool:
        return index % 2 == 1

    def image(self, split: str, index: int) -> Pixels:
        """uint8 [32, 32, 3]; the same for the same split and index, everywhere."""
        random = np.random.RandomState(_SEEDS[split] + index)
        label = index // 2 * 37 % 100
        return _draw(random, label // 10, _RGB[label % 10], self.is_complex(split, index))


def _draw(random: np.random.RandomState, glyph: int, colour: tuple[int, ...], hard: bool) -> Pixels:
    ground = random.randint(0, 70, 3)
    slope = random.randint(-25, 26, 2)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    shade = (slope[0] * x + slope[1] * y) // SIZE
    canvas = np.clip(ground[None, None] + shade[..., None], 0, 110).astype(np.int64)
    radius = random.randint(7, 10) if hard else random.randint(10, 14)
    reach = SIZE // 2 - radius
    centre = SIZE // 2 + random.randint(-reach, reach + 1, 2)
    if hard:
        for _ in range(random.randint(4, 8)):
            _paint(canvas, random.randint(len(GLYPHS)), random.randint(0, SIZE, 2), random.randint(3, 6), _grey(random))
    bright = 255 - random.randint(0, 100 if hard else 50)
    _paint(canvas, glyph, centre, radius, tuple(c * bright // 255 for c in colour))
    if hard:
        _cover(canvas, random, centre, radius)
        canvas += random.randint(-28, 29, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _grey(random: np.random.RandomState) -> tuple[int, ...]:
    return (int(random.randint(60, 170)),) * 3


def _cover(canvas: _Grid, random: np.random.RandomState, centre: _Grid, radius: int) -> None:
    """A grey bar over part of the glyph, never over its middle."""
    offset = int(random.choice([-1, 1])) * int(random.randint(radius * 2 // 5, radius))
    start, axis = int(centre[0]) + offset, int(random.randint(2))
    bar = slice(max(0, start - 1), max(0, start + 1))
    canvas[(bar, slice(None)) if axis else (slice(None), bar)] = _grey(random)[0]


def _paint(canvas: _Grid, glyph: int, centre: npt.ArrayLike, radius: int, colour: tuple[int, ...]) -> None:
    """Blends one glyph onto the canvas, anti-aliased by FINE x FINE sub-samples."""
    cx, cy = (int(c) for c in np.asarray(centre))
    left, right = max(0, cx - radius - 1), min(SIZE, cx + radius + 2)
    top, bottom = max(0, cy - radius - 1), min(SIZE, cy + radius + 2)
    y, x = np.mgrid[top * FINE : bottom * FINE, left * FINE : right * FINE]
    inside = _glyph(glyph, x - cx * FINE, y - cy * FINE, radius * FINE)
    cover = inside.reshape(bottom - top, FINE, right - left, FINE).sum((1, 3))[..., None]
    box = canvas[top:bottom, left:right]
    box[:] = (box * (FINE * FINE - cover) + np.asarray(colour) * cover) // (FINE * FINE)


def _glyph(glyph: int, x: _Grid, y: _Grid, r: int) -> _Mask:
    """Which sub-samples lie inside the glyph of half-width `r` centred on the origin."""
    ax, ay, d2 = np.abs(x), np.abs(y), x * x + y * y
    box = (ax <= r) & (ay <= r)
    name = GLYPHS[glyph]
    if name == "disc":
        return d2 <= r * r
    if name == "ring":
        return (d2 <= r * r) & (d2 * 100 >= r * r * 36)
    if name == "square":
        return (ax * 10 <= r * 9) & (ay * 10 <= r * 9)
    if name == "frame":
        return (np.maximum(ax, ay) * 10 <= r * 9) & (np.maximum(ax, ay) * 10 >= r * 5)
    if name == "triangle":
        return box & (2 * ax <= y + r)
    if name == "plus":
        return box & ((ax * 3 <= r) | (ay * 3 <= r))
    if name == "cross":
        return box & ((np.abs(x - y) * 2 <= r) | (np.abs(x + y) * 2 <= r))
    if name == "crescent":
        return (d2 <= r * r) & ((x - r * 6 // 10) ** 2 + y * y >= r * r * 64 // 100)
    if name == "bar":
        return (ax <= r) & (ay * 5 <= 2 * r)
    return box & (np.abs(y + r // 3 - ax) * 2 <= r)  # chevron
