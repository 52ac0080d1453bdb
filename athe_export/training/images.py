"""Training images: uint8 at source size in memory, resized and normalised in batches by torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from athe_export.data.source import Dataset, Progress
from athe_export.preprocessing import Preprocessing


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [n, 3, source, source] and what they are to give, [n]: labels int64, or the router's targets float32."""

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

    def to(self, device: torch.device) -> ImageSet:
        """The set in that device's memory; CIFAR-100's training images take 138 MB."""
        return ImageSet(self.pixels.to(device), self.labels.to(device))

    def taken(self, index: Tensor) -> ImageSet:
        """The images at these positions, int64 [k]."""
        return ImageSet(self.pixels[index], self.labels[index])

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels in order."""
        for start in range(0, len(self), batch_size):
            yield self.pixels[start : start + batch_size], self.labels[start : start + batch_size]


def to_input(pixels: Tensor, size: int, preprocessing: Preprocessing) -> Tensor:
    """uint8 [n, 3, s, s] -> normalised float32 [n, 3, size, size], on the device of the pixels.

    torch's antialiased uint8 interpolation differs from Pillow's by 0.003 grey levels on average (at most 2); that
    makes it fit for training, while everything that is gated or deployed goes through `preprocessing`. It exists on
    the CPU alone; elsewhere `resize_by_matrices` stands in.
    """
    if pixels.shape[-1] != size and pixels.device.type == "cpu":
        pixels = F.interpolate(pixels, (size, size), mode=preprocessing.resize, antialias=True)
    elif pixels.shape[-1] != size:
        pixels = resize_by_matrices(pixels, size, preprocessing.resize)
    mean = torch.tensor(preprocessing.mean).to(pixels.device, non_blocking=True).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).to(pixels.device, non_blocking=True).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def resize_by_matrices(pixels: Tensor, size: int, mode: str) -> Tensor:
    """uint8 [n, 3, s, s] -> whole numbers as float32 [n, 3, size, size]: rows, then columns, rounded and clipped after
    each as Pillow does, which leaves 0.1 grey levels between them on average."""
    weights = _interpolation(pixels.shape[-1], size, mode).to(pixels.device, non_blocking=True)
    wide = (pixels.float() @ weights.T).add_(0.5).floor_().clamp_(0, 255)
    return (weights @ wide).add_(0.5).floor_().clamp_(0, 255)


@lru_cache(maxsize=32)
def _interpolation(source: int, size: int, mode: str) -> Tensor:
    """What each source row gives to each resized one, float32 [size, source]: torch's own interpolation of single rows."""
    rows = torch.eye(source, dtype=torch.float64)[None, None]
    return F.interpolate(rows, (size, source), mode=mode, antialias=True)[0, 0].float()
