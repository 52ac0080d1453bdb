"""The one path from an image to a tensor: calibration, parity, golden tests and the device all come through here.

photo -> RGB -> shorter side to `source_size`, centre crop -> uint8 source -> `size` x `size` pixels, as graphs take them ->
normalised NCHW, as torch takes it, and the graphs of older bundles.
The middle step exists because the model learnt from small images: a sharp photo resized straight to the input
size is not what it saw. numpy and Pillow alone.
"""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from athe_export.errors import ImageError

MIN_SIDE = 8
MAX_PIXELS = 100_000_000
_TURNS = {  # EXIF orientation -> what brings the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Pixels = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32]
GraphInput = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # pixels [1, size, size, 3], or a tensor [1, 3, size, size]


class Photo(NamedTuple):
    """A decoded photo: uint8 RGB [height, width, 3] and remarks on anything that decoding left out."""

    pixels: Pixels
    notes: tuple[str, ...] = ()


class Preprocessing(NamedTuple):
    """Frozen preprocessing parameters; `mean` and `std` are per channel of pixels scaled to 0..1."""

    source_size: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def source(self, pixels: Pixels) -> Pixels:
        """RGB uint8 [h, w, 3] of any size -> [source_size, source_size, 3]: shorter side resized, centre cropped."""
        pixels = _middle(pixels)
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

    def graph_input(self, source: Pixels, shape: tuple[int, ...]) -> GraphInput:
        """What a graph with this input shape takes: pixels uint8 [1, size, size, 3], or a `tensor` [1, 3, size, size]."""
        return self.resized(source, shape[1])[None] if takes_pixels(shape) else self.tensor(source, shape[-1])

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

    def _filter(self) -> Image.Resampling:
        return {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[self.resize]


def takes_pixels(shape: tuple[int, ...]) -> bool:
    """Whether an input of this shape is pixels, channels last, rather than a normalised image, channels first."""
    return shape[-1] == 3


def _middle(pixels: Pixels) -> Pixels:
    """Of a strip, the part that a centre crop can reach: else enlarging one of few rows would not fit into memory."""
    height, width = pixels.shape[:2]
    reach = 3 * min(height, width)  # the crop, and as much again on both sides for the interpolation
    top, left = max(0, (height - reach) // 2), max(0, (width - reach) // 2)
    return pixels[top : top + reach, left : left + reach]


def read_photo(path: Path) -> Photo:
    """Decodes an image file to RGB, upright.

    Grayscale, palette, CMYK and 16-bit images are converted, and turned as their EXIF orientation says; transparency
    is composited over black; of several frames the first is taken. The last two are said in `notes`.

    Raises:
        ImageError: missing, not an image, truncated, smaller than 8 or larger than 100 million pixels.
    """
    return _decoded(path, path)


def decode_photo(content: bytes) -> Photo:
    """The same of a file's content in memory.

    Raises:
        ImageError: as of a file.
    """
    return _decoded(BytesIO(content), Path("image in memory"))


def _decoded(file: Path | BytesIO, path: Path) -> Photo:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on large and odd files: what matters of them is said here
            return _decode(file, path)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("there is no such image", where=str(path), remedy="check the path") from None
    except UnidentifiedImageError:
        raise ImageError("is not an image that Pillow can read", where=str(path), remedy="give a JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise _too_large("its header promises more", path) from None
    except (IsADirectoryError, PermissionError) as err:
        raise ImageError(f"cannot be read: {err.strerror}", where=str(path), remedy="give an image file") from None
    except Exception as err:  # of a damaged file decoders raise anything: IndexError, KeyError, RuntimeError, TypeError
        raise ImageError(
            f"cannot be decoded, it may be truncated: {err}", where=str(path), remedy="copy or export the image again"
        ) from None


def _decode(file: Path | BytesIO, path: Path) -> Photo:
    notes = []
    with Image.open(file) as image:
        _check_size(image, path)
        if (frames := getattr(image, "n_frames", 1)) > 1:
            notes.append(f"animated, or of several pages: the first of {frames} frames was taken")
            image.seek(0)
        image.load()
        turn = _TURNS.get(_orientation(image))
        rgb, transparent = _to_rgb(image if turn is None else image.transpose(turn))
    if transparent:
        notes.append("transparent pixels were composited over black")
    return Photo(np.asarray(rgb), tuple(notes))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none; damaged metadata do not make the pixels unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _check_size(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"is {width}x{height} pixels; there is nothing to classify below {MIN_SIDE}x{MIN_SIDE}",
            where=str(path),
            remedy="give a larger image",
        )
    if width * height > MAX_PIXELS:
        raise _too_large(f"it has {width}x{height}", path)


def _too_large(said: str, path: Path) -> ImageError:
    return ImageError(
        f"is over the limit of {MAX_PIXELS // 10**6} million pixels: {said}",
        where=str(path),
        remedy="scale the image down first; the model sees it at its source size anyway",
    )


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image, np.int64)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise ValueError("32-bit pixels have no defined range")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        low, _ = rgba.getchannel("A").getextrema()
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB"), bool(int(low) < 255)  # type: ignore[arg-type]
    return image.convert("RGB"), False
