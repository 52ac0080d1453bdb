"""The generated dataset: the same pixels everywhere, every class, easy and hard by construction."""

from __future__ import annotations

import numpy as np
import pytest

from athe_export.data import open_dataset
from athe_export.data.shapes import COLOURS, GLYPHS, SIZE, SIZES, Shapes
from athe_export.data.source import pixel_digest

PINNED = {
    ("train", 0): "97b237b6d63f1bf9929c4ef4fa0c17fbef64020a90cbe79ba349531b62bf83a0",
    ("train", 1): "c3bae866d8e9c40ec9231f7371f8159a2f97a6683cbb427611682469ce89ac93",
    ("holdout", 7): "c8af8b052bca8cdfb324729ab98c15d396aa3cab85efc7e9a4ac61c4a2fa70a7",
    ("test", 0): "7cc1f29741acff4a61ab96f9041c38e66c58fa7cb73130990d6ea89a04a72962",
    ("test", 5999): "e9567f236e5aa198ef3f76d479b6ba7e9a7d1fed131208263f03fb8faf431edc",
}


@pytest.mark.parametrize(("split", "index"), PINNED)
def test_an_image_is_the_same_on_every_machine(split: str, index: int) -> None:
    """Committed checkpoints and calibration sets rely on these pixels."""
    assert pixel_digest(Shapes().image(split, index)) == PINNED[split, index]


def test_the_digest_of_the_set_never_changes() -> None:
    assert Shapes().digest == "e64794e262447aeada9f8b70f171181dd49217eafde9945d84396c4cc5ae27ac"


def test_an_image_does_not_hang_on_what_was_drawn_before() -> None:
    shapes = Shapes()
    first = shapes.image("train", 5)
    np.random.seed(1)
    shapes.image("train", 6)
    assert np.array_equal(shapes.image("train", 5), first)


def test_images_are_32_pixels_rgb_and_differ() -> None:
    images = [Shapes().image(split, index) for split in SIZES for index in range(40)]
    assert all(i.shape == (SIZE, SIZE, 3) and i.dtype == np.uint8 for i in images)
    assert len({pixel_digest(i) for i in images}) == len(images)


@pytest.mark.parametrize("split", SIZES)
def test_every_split_covers_all_100_classes_equally(split: str) -> None:
    labels = Shapes().labels(split)
    assert len(labels) == Shapes().size(split) == SIZES[split]
    assert np.array_equal(np.bincount(labels), np.full(100, SIZES[split] // 100))


def test_a_gate_on_the_first_images_sees_every_class() -> None:
    assert set(Shapes().labels("test")[:200]) == set(range(100))


@pytest.mark.parametrize("split", SIZES)
def test_simple_and_complex_images_alternate_within_a_class(split: str) -> None:
    shapes = Shapes()
    assert [shapes.is_complex(split, i) for i in range(6)] == [False, True] * 3
    labels = shapes.labels(split)
    assert np.array_equal(labels[0::2], labels[1::2])


def test_complex_images_are_noisier_than_simple_ones() -> None:
    """By the mean step between neighbouring pixels, over the same classes: clutter and noise against calm ground."""
    steps = [np.abs(np.diff(Shapes().image("test", i).astype(int), axis=1)).mean() for i in range(80)]
    assert min(steps[1::2]) > max(steps[0::2])


def test_a_label_names_the_glyph_and_the_colour_that_were_drawn() -> None:
    """Read off the pixels: the middle of a simple square has its colour's hue."""
    shapes = Shapes()
    assert shapes.class_names[GLYPHS.index("square") * 10 + COLOURS.index("red")] == "red square"
    assert len(set(shapes.class_names)) == 100
    labels = shapes.labels("train")
    for name, strongest in (("red square", 0), ("green disc", 1), ("blue square", 2)):
        wanted = shapes.class_names.index(name)
        index = next(i for i in range(0, 400, 2) if labels[i] == wanted)
        pixels = shapes.image("train", index).reshape(-1, 3).astype(int)
        coloured = pixels[pixels.max(1) > 150]
        assert (coloured.argmax(1) == strongest).mean() > 0.95


def test_shapes_are_opened_by_name() -> None:
    dataset = open_dataset("shapes")
    assert (dataset.name, dataset.splits) == ("shapes", ("train", "holdout", "test"))
