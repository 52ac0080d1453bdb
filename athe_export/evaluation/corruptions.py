"""Images made worse: Gaussian blur and noise at five strengths. numpy and Pillow.

The strengths are those of CIFAR-10-C (Hendrycks and Dietterich, Benchmarking neural network robustness to common
corruptions and perturbations, ICLR 2019), which are made for images of 32 pixels: the width of the blur grows with the size
that a recipe brings its images to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from athe_export.data.source import Dataset
from athe_export.preprocessing import Pixels, Preprocessing

BLUR, NOISE = "gaussian_blur", "gaussian_noise"
STRENGTHS = {BLUR: (0.4, 0.6, 0.7, 0.8, 1.0), NOISE: (0.04, 0.06, 0.08, 0.09, 0.10)}
UNITS = {BLUR: "standard deviation in pixels of a 32-pixel image", NOISE: "standard deviation as a share of white"}
_SIDE = 32  # pixels that the blur's strengths are stated for


@dataclass(frozen=True)
class Corruption:
    """One corruption at one strength, 1 to 5."""

    name: str
    strength: int

    @property
    def level(self) -> float:
        """The strength in the corruption's own unit (UNITS)."""
        return STRENGTHS[self.name][self.strength - 1]

    def apply(self, source: Pixels, seed: tuple[int, ...]) -> Pixels:
        """A source image uint8 [s, s, 3], corrupted; the same seed draws the same noise.

        Blur is Pillow's, which repeats box filters.
        """
        if self.name == BLUR:
            radius = self.level * source.shape[0] / _SIDE
            return np.asarray(Image.fromarray(source).filter(ImageFilter.GaussianBlur(radius)))
        noise = np.random.default_rng((*seed, self.strength)).normal(0.0, 255 * self.level, source.shape)
        return np.clip(np.rint(source + noise), 0, 255).astype(np.uint8)


ALL = tuple(Corruption(name, strength) for name in STRENGTHS for strength in range(1, 6))


class Corrupted:
    """A dataset whose images come at source size and corrupted; each is the same for every system.

    Args:
        preprocessing: brings an image to source size; that of the system which is to see it.
        seed: of the noise, together with the image's position and the strength.
    """

    def __init__(self, dataset: Dataset, corruption: Corruption, preprocessing: Preprocessing, seed: int) -> None:
        self._dataset, self._corruption, self._preprocessing, self._seed = dataset, corruption, preprocessing, seed

    @property
    def name(self) -> str:
        return self._dataset.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._dataset.class_names

    @property
    def digest(self) -> str:
        return self._dataset.digest

    @property
    def splits(self) -> tuple[str, ...]:
        return self._dataset.splits

    def size(self, split: str) -> int:
        return self._dataset.size(split)

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        return self._dataset.labels(split)

    def image(self, split: str, index: int) -> Pixels:
        source = self._preprocessing.source(self._dataset.image(split, index))
        return self._corruption.apply(source, (self._seed, index))
