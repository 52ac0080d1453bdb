"""Augmentation of training images: Pillow's operations in batches, labels that follow the pixels, repeatable draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from athe_export.data.shapes import Shapes
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import PhaseSpec, TrainSpec
from athe_export.training.augment import augment, crop_and_flip, erase, mix
from athe_export.training.images import resize_by_matrices, to_input
from athe_export.training.trivial_augment import OPERATIONS, trivial_augment

SPEC = TrainSpec((PhaseSpec(1),), (), (), crop_padding=4, flip=True)


def spec(**changes: float | bool) -> TrainSpec:
    return dataclasses.replace(SPEC, **changes)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Images with gradients and noise, so that no operation has an easy case: uint8 [12, 3, 32, 32]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32]
    made = []
    for i in range(12):
        base = np.stack([x * (3 + i % 4) + y, 200 - 4 * y + x, 40 + 3 * np.abs(x - 16) + 10 * i], 0)
        made.append(np.clip(base + random.normal(0, 12, base.shape), 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(made))


# --- TrivialAugment ---------------------------------------------------------------------------------------------------


def blended(enhance: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: enhance(image).enhance(1 + 0.99 * strength)


def bits(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(6 * abs(strength)))


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": blended(ImageEnhance.Brightness),
    "colour": blended(ImageEnhance.Color),
    "contrast": blended(ImageEnhance.Contrast),
    "sharpness": blended(ImageEnhance.Sharpness),
    "posterize": bits,
    "solarize": lambda image, strength: ImageOps.solarize(image, round(255 * (1 - abs(strength)))),
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
}


def ours(name: str, pixels: Tensor, strength: float) -> Tensor:
    operation = OPERATIONS[name]
    assert operation is not None
    return operation(pixels.float(), torch.full((len(pixels),), strength)).round().clamp(0, 255)


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.2, 1.0])
@pytest.mark.parametrize("name", PILLOW)
def test_colour_operations_are_pillows_within_a_grey_level(name: str, strength: float, photos: Tensor) -> None:
    made = ours(name, photos, strength)
    for image, found in zip(photos, made, strict=True):
        wanted = PILLOW[name](Image.fromarray(image.permute(1, 2, 0).numpy()), strength)
        difference = np.abs(found.permute(1, 2, 0).numpy() - np.asarray(wanted, np.float32))
        assert difference.max() <= 2 and difference.mean() < 0.7


@pytest.mark.parametrize(
    ("name", "strength", "matrix"),
    [
        ("shear x", 0.5, lambda s: (1, 0.99 * s, -0.99 * s * 16, 0, 1, 0)),
        ("shear y", -0.5, lambda s: (1, 0, 0, 0.99 * s, 1, -0.99 * s * 16)),
        ("translate x", 0.25, lambda s: (1, 0, 32 * s, 0, 1, 0)),
        ("translate y", -0.25, lambda s: (1, 0, 0, 0, 1, 32 * s)),
    ],
)
def test_geometric_operations_are_pillows_inside_the_image(
    name: str, strength: float, matrix: Callable[[float], tuple[float, ...]], photos: Tensor
) -> None:
    made = ours(name, photos, strength)
    for image, found in zip(photos, made, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        wanted = pillow.transform((32, 32), Image.Transform.AFFINE, matrix(strength), Image.Resampling.BILINEAR)
        inner = (
            np.asarray(wanted, np.float32).sum(2) > 0
        )  # Pillow leaves out what it would have to interpolate at the border
        inner &= found.sum(0).numpy() > 0
        inner[:, :2] = inner[:, -2:] = inner[:2] = inner[-2:] = False
        difference = np.abs(found.permute(1, 2, 0).numpy() - np.asarray(wanted, np.float32)).max(2)
        assert np.median(difference[inner]) <= 1 and inner.sum() > 200


def test_a_quarter_of_a_turn_and_a_half_gives_black_corners_and_keeps_the_middle(photos: Tensor) -> None:
    turned = ours("rotate", photos, 1.0)
    assert float(turned[:, :, 0, 0].abs().max()) == 0
    middle = photos[:, :, 12:20, 12:20].float().mean((2, 3))
    torch.testing.assert_close(turned[:, :, 12:20, 12:20].mean((2, 3)), middle, atol=6, rtol=0)


def test_all_operations_are_drawn_and_the_draw_repeats(photos: Tensor) -> None:
    assert len(OPERATIONS) == 14  # Müller and Hutter, 2021
    many = photos.repeat(20, 1, 1, 1)
    made = trivial_augment(many, seeded())
    assert made.dtype == torch.uint8 and made.shape == many.shape
    assert torch.equal(made, trivial_augment(many, seeded()))
    changed = (made != many).flatten(1).any(1).float().mean()
    assert 0.7 < float(changed) < 0.99  # one operation in fourteen changes nothing


def test_an_image_of_one_colour_survives_every_operation() -> None:
    flat = torch.full((56, 3, 32, 32), 200, dtype=torch.uint8)
    for name in PILLOW:
        operation = OPERATIONS[name]
        assert operation is not None and torch.isfinite(operation(flat.float(), torch.linspace(-1, 1, 56))).all(), name


# --- erasing, mixup, CutMix -------------------------------------------------------------------------------------------


def test_random_erasing_fills_one_rectangle_of_about_the_published_area(photos: Tensor) -> None:
    many = photos.repeat(50, 1, 1, 1)
    changed = (erase(many, 1.0, seeded()) != many).any(1)
    areas = changed.float().mean((1, 2))
    assert 0.1 < float(areas.mean()) < 0.2  # uniform between 0.02 and 0.33
    assert float(areas.max()) <= 0.4
    assert torch.equal(erase(many, 0.0, seeded()), many)
    assert 0.2 < float((erase(many, 0.25, seeded()) != many).flatten(1).any(1).float().mean()) < 0.3


def test_mixed_labels_are_the_shares_of_the_pixels_that_are_left() -> None:
    """Image i is of the one grey level 10 i and has label i, so that the mixture can be read from the pixels."""
    labels = torch.arange(20)
    pixels = (10 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    for changes in ({"mixup": 0.8}, {"cutmix": 1.0}):
        mixed, shares = mix(pixels, labels, 100, spec(**changes), seeded(1))
        assert shares.shape == (20, 100)
        torch.testing.assert_close(shares.sum(1), torch.ones(20))
        assert float((shares > 0).sum(1).float().mean()) > 1.5
        seen = mixed[:, 0].float().mean((1, 2))
        torch.testing.assert_close(seen, (shares * torch.arange(100) * 10).sum(1), atol=0.51, rtol=0)


def test_without_mixing_labels_stay_labels() -> None:
    pixels, labels = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8)
    for changes in ({}, {"mixup": 0.8, "mix_probability": 0.0}):
        mixed, same = mix(pixels, labels, 100, spec(**changes), seeded())
        assert mixed is pixels and same is labels


def test_with_both_each_is_taken_in_about_half_of_the_steps_and_only_as_often_as_asked() -> None:
    pixels, labels = torch.randint(256, (8, 3, 32, 32), generator=seeded(), dtype=torch.uint8), torch.arange(8)
    both = spec(mixup=0.8, cutmix=1.0, mix_probability=0.6)
    values = {bytes(p.numpy().tobytes()) for p in pixels.permute(0, 2, 3, 1).reshape(-1, 3)}
    kinds = []
    for step in range(200):
        mixed, shares = mix(pixels, labels, 100, both, seeded(step))
        kept = torch.isin(mixed.flatten(), pixels.flatten())
        cut = all(bytes(p.numpy().tobytes()) in values for p in mixed.permute(0, 2, 3, 1).reshape(-1, 3)[:256])
        kinds.append("none" if shares is labels else "cut" if cut and bool(kept.all()) else "mixup")
    assert 0.5 < 1 - kinds.count("none") / 200 < 0.7
    assert 0.3 < kinds.count("cut") / (200 - kinds.count("none")) < 0.7


# --- all together -----------------------------------------------------------------------------------------------------


def test_a_light_phase_crops_and_flips_alone(photos: Tensor) -> None:
    full = spec(trivial_augment=True, random_erasing=0.5)
    light = augment(photos, full, True, seeded())
    assert torch.equal(light, crop_and_flip(photos, 4, True, seeded()))
    assert not torch.equal(augment(photos, full, False, seeded()), light)


@pytest.mark.parametrize(
    ("mode", "filter"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)]
)
@pytest.mark.parametrize("size", [64, 80, 224])
def test_resizing_for_an_accelerator_is_pillows_within_two_grey_levels(
    mode: str, filter: Image.Resampling, size: int
) -> None:
    noise = torch.randint(256, (8, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    found = resize_by_matrices(noise, size, mode).permute(0, 2, 3, 1).numpy()
    wanted = [np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).resize((size, size), filter)) for i in noise]
    difference = np.abs(found - np.stack(wanted).astype(np.float32))
    assert difference.max() <= 2 and difference.mean() < 0.1


def test_both_ways_of_resizing_give_the_same_input() -> None:
    preprocessing = Preprocessing(32, "bicubic", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    pixels = torch.from_numpy(Shapes().image("train", 3).transpose(2, 0, 1).copy())[None]
    difference = (to_input(pixels, 96, preprocessing) - resize_by_matrices(pixels, 96, "bicubic")).abs()
    assert float(difference.max()) <= 2 and float(difference.mean()) < 0.02


def test_training_sees_what_the_device_sees_within_a_grey_level() -> None:
    preprocessing = Preprocessing(32, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    source = Shapes().image("train", 1)
    ours = preprocessing.tensor(source, 64)
    torchs = to_input(torch.from_numpy(source.transpose(2, 0, 1).copy())[None], 64, preprocessing).numpy()
    assert float(np.abs(ours - torchs).mean()) * 255 < 0.02
    assert float(np.abs(ours - torchs).max()) * 255 <= 2.01


def test_crop_and_flip_move_and_mirror_but_invent_no_values() -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    source[10:20, 12:25] = (200, 30, 90)
    pixels = torch.from_numpy(source.transpose(2, 0, 1).copy())[None].repeat(64, 1, 1, 1)
    made = crop_and_flip(pixels, 4, True, seeded())
    assert made.shape == pixels.shape and made.dtype == torch.uint8
    assert set(made[:, 0].unique().tolist()) == {0, 200}
    assert len({bytes(m.numpy().tobytes()) for m in made}) > 20
    again = crop_and_flip(pixels, 4, True, seeded())
    assert torch.equal(made, again)
