"""Training images: uint8 at source size in memory, augmented and resized in batches by torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from athe_export.data.source import Dataset, Progress
from athe_export.preprocessing import Preprocessing


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [n, 3, source, source] and labels int64 [n] of one split."""

    pixels: Tensor
    labels: Tensor

    @classmethod
    def load(
        cls, dataset: Dataset, split: str, preprocessing: Preprocessing, limit: int | None, progress: Progress
    ) -> ImageSet:
        """Reads a split at source size: 3 KB an image at 32 pixels, never the model's input size."""
        size = dataset.size(split) if limit is None else min(limit, dataset.size(split))
        source = preprocessing.source_size
        pixels = np.empty((size, 3, source, source), np.uint8)
        for index in range(size):
            pixels[index] = preprocessing.source(dataset.image(split, index)).transpose(2, 0, 1)
            if index % 1000 == 0 or index == size - 1:
                progress(f"read {split} images", index + 1, size)
        return cls(torch.from_numpy(pixels), torch.from_numpy(dataset.labels(split)[:size].copy()))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels in order."""
        for start in range(0, len(self), batch_size):
            yield self.pixels[start : start + batch_size], self.labels[start : start + batch_size]


def to_input(pixels: Tensor, size: int, preprocessing: Preprocessing) -> Tensor:
    """uint8 [n, 3, s, s] -> normalised float32 [n, 3, size, size].

    torch's antialiased uint8 interpolation differs from Pillow's by 0.003 grey levels on average (at most 2); that
    makes it fit for training, while everything that is gated or deployed goes through `preprocessing`.
    """
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode=preprocessing.resize, antialias=True)
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(preprocessing.std, device=pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop after reflective padding, and horizontal flip, per image; uint8 [n, 3, s, s] both ways."""
    count, _, size, _ = pixels.shape
    if padding:
        padded = F.pad(pixels.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
        offset = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
        span = torch.arange(size)
        rows, columns = (offset[0] + span)[:, None, :, None], (offset[1] + span)[:, None, None, :]
        pixels = padded[torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]
    if flip:
        flipped = torch.rand(count, generator=generator) < 0.5
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    return pixels
