"""The one path from an image to a tensor: calibration, parity, golden tests and the device all come through here.

photo -> RGB -> shorter side to `source_size`, centre crop -> uint8 source -> `size` x `size` pixels -> normalised NCHW.
The middle step exists because the model learnt from small images: a sharp photo resized straight to the input
size is not what it saw. numpy and Pillow alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from athe_export.errors import ImageError

MIN_SIDE = 8
MAX_PIXELS = 100_000_000
Pixels = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Photo:
    """A decoded photo: uint8 RGB [height, width, 3] and remarks on anything that decoding left out."""

    pixels: Pixels
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preprocessing:
    """Frozen preprocessing parameters; `mean` and `std` are per channel of pixels scaled to 0..1."""

    source_size: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def source(self, pixels: Pixels) -> Pixels:
        """RGB uint8 [h, w, 3] of any size -> [source_size, source_size, 3]: shorter side resized, centre cropped."""
        height, width = pixels.shape[:2]
        size = self.source_size
        if (height, width) == (size, size):
            return pixels
        scale = size / min(height, width)
        resized = (max(size, round(width * scale)), max(size, round(height * scale)))
        image = Image.fromarray(pixels).resize(resized, self._filter())
        left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))

    def resized(self, source: Pixels, size: int) -> Pixels:
        """uint8 [s, s, 3] -> uint8 [size, size, 3]."""
        if source.shape[0] == size:
            return source
        return np.asarray(Image.fromarray(source).resize((size, size), self._filter()))

    def tensor(self, source: Pixels, size: int) -> Tensor:
        """uint8 source image -> float32 [1, 3, size, size], normalised."""
        scaled = self.resized(source, size).astype(np.float32) / np.float32(255)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])

    def golden_sha256(self, sizes: tuple[int, ...]) -> str:
        """Digest of a fixed pattern taken through every step to every input size; equal where preprocessing is equal."""
        y, x = np.mgrid[0:53, 0:71]
        pattern = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, ((x // 5 + y // 4) % 2) * 255], -1).astype(np.uint8)
        digest = hashlib.sha256()
        for size in sorted(set(sizes)):
            digest.update(self.tensor(self.source(pattern), size).tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"source_size": self.source_size, "resize": self.resize, "mean": list(self.mean), "std": list(self.std)}

    def _filter(self) -> Image.Resampling:
        return {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[self.resize]


def read_photo(path: Path) -> Photo:
    """Decodes an image file to RGB.

    Grayscale, palette, CMYK and 16-bit images are converted; transparency is composited over black; of an
    animation the first frame is taken. The last two are said in `notes`.

    Raises:
        ImageError: missing, not an image, truncated, smaller than 8 or larger than 100 million pixels.
    """
    try:
        with Image.open(path) as image:
            _check_size(image, path)
            notes = []
            if getattr(image, "n_frames", 1) > 1:
                notes.append(f"animated: the first of {getattr(image, 'n_frames', 1)} frames was taken")
                image.seek(0)
            image.load()
            rgb, transparent = _to_rgb(image)
    except FileNotFoundError:
        raise ImageError("there is no such image", where=str(path), remedy="check the path") from None
    except UnidentifiedImageError:
        raise ImageError("is not an image that Pillow can read", where=str(path), remedy="give a JPEG or PNG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ImageError(
            f"cannot be decoded, it may be truncated: {err}", where=str(path), remedy="copy or export the image again"
        ) from None
    if transparent:
        notes.append("transparent pixels were composited over black")
    return Photo(np.asarray(rgb), tuple(notes))


def _check_size(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"is {width}x{height} pixels; there is nothing to classify below {MIN_SIDE}x{MIN_SIDE}",
            where=str(path),
            remedy="give a larger image",
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"is {width}x{height}, over the limit of {MAX_PIXELS // 10**6} million pixels",
            where=str(path),
            remedy="scale the image down first; the model sees it at its source size anyway",
        )


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        low, _ = rgba.getchannel("A").getextrema()
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB"), bool(int(low) < 255)  # type: ignore[arg-type]
    return image.convert("RGB"), False
