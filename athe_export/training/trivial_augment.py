"""TrivialAugment: one random operation of random strength an image, vectorised over uint8 batches [n, 3, s, s].

Müller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, ICCV 2021 ("wide" ranges, 31
strengths). Colour operations are defined as in Pillow's ImageOps and ImageEnhance. Geometric ones turn
about the centre, interpolate linearly and leave black what comes from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = 31


def trivial_augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Applies to each image one of `OPERATIONS`; uint8 both ways."""
    count = len(pixels)
    which = torch.randint(len(OPERATIONS), (count,), generator=generator)
    strength = torch.randint(STRENGTHS, (count,), generator=generator) / (STRENGTHS - 1)
    sign = 1 - 2 * torch.randint(2, (count,), generator=generator)
    made = pixels.clone()
    for number, operation in enumerate(OPERATIONS.values()):
        members = (which == number).nonzero()[:, 0]  # known on the host: a device is never asked
        if len(members) and operation is not None:
            chosen = members.to(pixels.device, non_blocking=True)
            signed = (strength * sign)[members].to(pixels.device, non_blocking=True)
            made[chosen] = operation(pixels[chosen].float(), signed).round().clamp(0, 255).to(torch.uint8)
    return made


def shear(x: Tensor, strength: Tensor, axis: int) -> Tensor:
    """Up to 0.99 pixels a pixel."""
    matrix = _identity(strength)
    matrix[:, axis, 1 - axis] = 0.99 * strength
    return _warped(x, matrix)


def translate(x: Tensor, strength: Tensor, axis: int) -> Tensor:
    """Up to 32 pixels, the side of the images that the ranges were made for: the whole image."""
    matrix = _identity(strength)
    matrix[:, axis, 2] = 2 * strength
    return _warped(x, matrix)


def rotate(x: Tensor, strength: Tensor) -> Tensor:
    """Up to 135 degrees."""
    angle = math.radians(135) * strength
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).unflatten(1, (2, 2))
    return _warped(x, F.pad(rows, (0, 1)))


def brightness(x: Tensor, strength: Tensor) -> Tensor:
    return _away_from(torch.zeros_like(x), x, strength)


def colour(x: Tensor, strength: Tensor) -> Tensor:
    return _away_from(_grey(x).expand_as(x), x, strength)


def contrast(x: Tensor, strength: Tensor) -> Tensor:
    return _away_from((_grey(x).mean((2, 3), keepdim=True) + 0.5).floor(), x, strength)


def sharpness(x: Tensor, strength: Tensor) -> Tensor:
    """Away from the image smoothed by a 3 x 3 kernel; the border stays."""
    kernel = torch.ones(3, 3, device=x.device)
    kernel[1, 1] = 5
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, (kernel / 13).expand(3, 1, 3, 3), groups=3).round()
    return _away_from(smooth, x, strength)


def posterize(x: Tensor, strength: Tensor) -> Tensor:
    """Keeps 8 to 2 bits."""
    step = 2 ** (6 * strength.abs()).round()[:, None, None, None]
    return (x / step).floor() * step


def solarize(x: Tensor, strength: Tensor) -> Tensor:
    """Inverts what is at or above a threshold, from 255 to 0."""
    return torch.where(x < (255 * (1 - strength.abs())).round()[:, None, None, None], x, 255 - x)


def autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    """Stretches each channel to 0..255; a channel of one value stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) * 255 / (high - low).clamp(min=1), x)


def equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Spreads each channel's values so that they are equally frequent, with Pillow's whole-number steps."""
    values = x.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, device=x.device)
    counts.scatter_add_(2, values, torch.ones_like(values, dtype=torch.float32))
    below = counts.cumsum(2) - counts
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = ((values.shape[2] - last) / 255).floor()
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor().clamp(0, 255)
    return torch.where(step[..., None] > 0, table.gather(2, values).view_as(x), x)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "identity": None,
    "shear x": lambda x, strength: shear(x, strength, 0),
    "shear y": lambda x, strength: shear(x, strength, 1),
    "translate x": lambda x, strength: translate(x, strength, 0),
    "translate y": lambda x, strength: translate(x, strength, 1),
    "rotate": rotate,
    "brightness": brightness,
    "colour": colour,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}


def _identity(strength: Tensor) -> Tensor:
    return torch.eye(2, 3, device=strength.device).repeat(len(strength), 1, 1)


def _warped(x: Tensor, matrix: Tensor) -> Tensor:
    """Each image read at the places that its 2 x 3 matrix gives, in coordinates of -1 to 1."""
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).to(x.device, non_blocking=True)
    return (x * weights[None, :, None, None]).sum(1, keepdim=True).round()


def _away_from(plain: Tensor, x: Tensor, strength: Tensor) -> Tensor:
    """x blended away from, or towards, a plainer image: factors of 0.01 to 1.99."""
    return plain + (1 + 0.99 * strength)[:, None, None, None] * (x - plain)
