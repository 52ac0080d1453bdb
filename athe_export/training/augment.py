"""Augmentation of uint8 images [n, 3, s, s] in batches, before they are resized.

Every random number is drawn on the CPU from the generator that is passed in, so that a step is the same wherever its
images lie, and nothing has to wait for a device.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from athe_export.recipe import TrainSpec
from athe_export.training.trivial_augment import trivial_augment


def augment(pixels: Tensor, spec: TrainSpec, light: bool, generator: torch.Generator) -> Tensor:
    """What the recipe asks for on single images; `light`: crop and flip alone."""
    pixels = crop_and_flip(pixels, spec.crop_padding, spec.flip, generator)
    if spec.trivial_augment and not light:
        pixels = trivial_augment(pixels, generator)
    if spec.random_erasing and not light:
        pixels = erase(pixels, spec.random_erasing, generator)
    return pixels


def crop_and_flip(pixels: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop after reflective padding, and horizontal flip, per image."""
    count, _, size, _ = pixels.shape
    device = pixels.device
    if padding:
        padded = F.pad(pixels.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
        offset = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator).to(device, non_blocking=True)
        span = torch.arange(size, device=device)
        rows, columns = (offset[0] + span)[:, None, :, None], (offset[1] + span)[:, None, None, :]
        image, channel = torch.arange(count, device=device), torch.arange(3, device=device)
        pixels = padded[image[:, None, None, None], channel[None, :, None, None], rows, columns]
    if flip:
        flipped = (torch.rand(count, generator=generator) < 0.5).to(device, non_blocking=True)
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    return pixels


def erase(pixels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fills a random rectangle with a random colour (Zhong et al., Random Erasing, 2020; area 2 to 33 % and aspect 0.3
    to 3.3 are torchvision's, the paper's area goes to 40 %)."""
    count, _, size, _ = pixels.shape
    chosen, area, aspect, top, left = torch.rand(5, count, generator=generator)
    colour = torch.randint(256, (count, 3, 1, 1), generator=generator, dtype=torch.uint8)
    area, aspect = 0.02 + 0.31 * area, 0.3 * 11**aspect
    height = (size * (area * aspect).sqrt()).round().clamp(1, size)
    width = (size * (area / aspect).sqrt()).round().clamp(1, size)
    first = torch.stack([top * (size - height + 1), left * (size - width + 1)]).floor()
    last = torch.where(chosen < probability, first + torch.stack([height, width]), first)
    inside = _rectangles(first, last, size).to(pixels.device, non_blocking=True)
    return torch.where(inside[:, None], colour.to(pixels.device, non_blocking=True), pixels)


def mix(pixels: Tensor, labels: Tensor, classes: int, spec: TrainSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of each image with another of the batch, with a weight of its own.

    Mixup: Zhang et al., 2018, section 2. CutMix: Yun et al., 2019, labels weighed by the area that is left.

    Returns:
        The images, and the labels as shares, float32 [n, classes]; in a step that does not mix, both as they came.
    """
    count, size = len(labels), pixels.shape[-1]
    whether, which = torch.rand(2, generator=generator).tolist()
    if whether >= spec.mix_probability or not (spec.mixup or spec.cutmix):
        return pixels, labels
    cut = spec.cutmix > 0 and (spec.mixup == 0 or which < 0.5)
    alpha = spec.cutmix if cut else spec.mixup
    drawn = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    weight = torch.from_numpy(drawn.beta(alpha, alpha, count).astype(np.float32))
    partner = torch.randperm(count, generator=generator).to(pixels.device, non_blocking=True)
    if cut:
        half, centre = size * (1 - weight).sqrt() / 2, size * torch.rand(2, count, generator=generator)
        outside = ~_rectangles((centre - half).round(), (centre + half).round(), size)
        weight = outside.float().mean((1, 2))
        mixed = torch.where(outside[:, None].to(pixels.device, non_blocking=True), pixels, pixels[partner])
    else:
        share = weight.to(pixels.device, non_blocking=True)[:, None, None, None]
        mixed = torch.lerp(pixels[partner].float(), pixels.float(), share).round().to(torch.uint8)
    shares = torch.zeros(count, classes, device=labels.device).scatter_(1, labels[:, None], 1.0)
    return mixed, torch.lerp(shares[partner], shares, weight.to(labels.device, non_blocking=True)[:, None])


def _rectangles(first: Tensor, last: Tensor, size: int) -> Tensor:
    """Whether pixels lie from `first` up to, not including, `last`, both [2, n] (row, column): bool [n, size, size]."""
    span = torch.arange(size)
    inside = (span >= first[..., None]) & (span < last[..., None])
    return inside[0][:, :, None] & inside[1][:, None, :]
