"""The image-to-tensor contract: photos of every kind, what is refused, and that a pass over many holds memory flat."""

from __future__ import annotations

import random
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from athe_export.data.shapes import Shapes
from athe_export.errors import ImageError
from athe_export.preprocessing import Pixels, Preprocessing, read_photo

IMAGENET = Preprocessing(32, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GOLDEN = "f734127af8fbed25b13b95658a37b0728ed3b25927a557fe487cdc13e6b35e28"  # of IMAGENET at 64 pixels
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves an image as a file of the given suffix."""

    def write(image: Image.Image, suffix: str = ".png", **options: Any) -> Path:
        path = tmp_path / f"image{suffix}"
        image.save(path, **options)
        return path

    return write


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def refusal(path: Path) -> str:
    """What is wrong with the image; no warning may go out beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            read_photo(path)
    assert caught.value.exit_code == 2
    assert caught.value.where == str(path)
    assert caught.value.remedy
    return caught.value.what


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


def test_an_rgb_image_is_read_as_it_is(save: Save) -> None:
    photo = read_photo(save(Image.fromarray(noise(9, 12))))
    assert np.array_equal(photo.pixels, noise(9, 12))
    assert photo.notes == ()


def test_a_grayscale_image_has_three_equal_channels(save: Save) -> None:
    gray = noise(9, 12)[..., 0]
    assert np.array_equal(read_photo(save(Image.fromarray(gray))).pixels, np.repeat(gray[..., None], 3, -1))


def test_a_16_bit_image_keeps_its_upper_eight_bits(save: Save) -> None:
    deep = np.random.RandomState(0).randint(0, 1 << 16, (9, 12)).astype(np.uint16)
    found = read_photo(save(Image.fromarray(deep))).pixels
    assert np.array_equal(found, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, -1))


def test_pixels_without_a_defined_range_are_refused(save: Save) -> None:
    for value in (1 << 16, -1):
        deep = Image.fromarray(np.full((9, 9), value, np.int32))
        assert "32-bit pixels have no defined range" in refusal(save(deep, ".tiff"))
    assert "floating-point pixels" in refusal(save(Image.fromarray(np.ones((9, 9), np.float32)), ".tiff"))


def test_a_palette_image_has_its_palettes_colours(save: Save) -> None:
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert (read_photo(save(image)).pixels == (10, 200, 30)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_black_and_that_is_said(save: Save, mode: str) -> None:
    image = Image.new("RGBA", (9, 9), (255, 255, 255, 255))
    image.paste((255, 255, 255, 0), (0, 0, 9, 4))
    photo = read_photo(save(image.convert(mode)))
    assert (photo.pixels[:4] == 0).all()
    assert (photo.pixels[4:] == 255).all()
    assert photo.notes == ("transparent pixels were composited over black",)


def test_an_opaque_alpha_channel_changes_and_says_nothing(save: Save) -> None:
    photo = read_photo(save(Image.fromarray(noise(9, 9)).convert("RGBA")))
    assert np.array_equal(photo.pixels, noise(9, 9))
    assert photo.notes == ()


def test_a_cmyk_jpeg_is_read_in_its_colours(save: Save) -> None:
    photo = read_photo(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), ".jpg", quality=95))
    assert photo.pixels.shape == (16, 16, 3)
    assert np.abs(photo.pixels.astype(int) - (255, 0, 0)).max() <= 8  # red, within what JPEG loses


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tiff"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(save: Save, suffix: str) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    photo = read_photo(save(frames[0], suffix, save_all=True, append_images=frames[1:]))
    assert (photo.pixels == (255, 0, 0)).all()
    assert photo.notes == ("animated, or of several pages: the first of 3 frames was taken",)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_as_its_exif_says(save: Save, suffix: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:] = (255, 0, 0), (0, 0, 255)
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
              6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1)}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_photo(save(Image.fromarray(np.ascontiguousarray(stored)), suffix, exif=exif)).pixels
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright)[2:6, 2:6].max() <= 8  # away from edges, within what JPEG loses
    assert np.abs(found.astype(int) - upright)[2:6, 18:22].max() <= 8


def test_damaged_metadata_do_not_make_an_image_unreadable(save: Save) -> None:
    path = save(Image.fromarray(noise(9, 9)), exif=b"Exif\0\0no such thing")
    assert np.array_equal(read_photo(path).pixels, noise(9, 9))


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.png") == "there is no such image"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("cannot be read")


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "signature"])
def test_what_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert refusal(path) == "is not an image that Pillow can read"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tiff"])
def test_a_truncated_image_is_refused(save: Save, suffix: str) -> None:
    path = save(Image.fromarray(noise(64, 64)), suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in refusal(path)


def test_damaged_files_of_every_kind_are_refused_or_read_but_never_crash(save: Save, tmp_path: Path) -> None:
    first, second = Image.fromarray(noise(24, 24)), Image.fromarray(noise(24, 24, 1))
    draw, outcomes = random.Random(0), set()
    frames = {"save_all": True, "append_images": [second]}
    for suffix, options in {".gif": frames, ".tiff": frames, ".png": frames, ".webp": {}, ".jpg": {}, ".bmp": {}}.items():
        sound = save(first, suffix, **options).read_bytes()
        damaged = [sound[: len(sound) * k // 40] for k in range(40)]
        for _ in range(60):
            broken = bytearray(sound)
            for _ in range(draw.choice((1, 4))):
                broken[draw.randrange(draw.choice((60, len(sound))))] = draw.randrange(256)
            damaged.append(bytes(broken))
        for content in damaged:
            (tmp_path / "damaged").write_bytes(content)
            try:
                outcomes.add(read_photo(tmp_path / "damaged").pixels.dtype.name)
            except ImageError:
                outcomes.add("refused")
    assert outcomes == {"uint8", "refused"}


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_an_image_too_small_to_show_anything_is_refused(save: Save, size: tuple[int, int]) -> None:
    assert refusal(save(Image.new("RGB", size))).startswith(f"is {size[0]}x{size[1]} pixels; there is nothing to classify")


def test_the_smallest_image_is_8_pixels_a_side(save: Save) -> None:
    assert read_photo(save(Image.new("RGB", (8, 8)))).pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("side", [10_001, 12_000, 30_000, 200_000])
def test_a_huge_image_is_refused_from_its_header_alone(tmp_path: Path, side: int) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(side, side))
    assert refusal(path).startswith("is over the limit of 100 million pixels")


def test_the_source_of_an_image_at_source_size_is_the_image() -> None:
    assert np.array_equal(IMAGENET.source(noise(32, 32)), noise(32, 32))


@pytest.mark.parametrize("size", [(64, 64), (33, 32), (100, 37), (37, 300), (8, 8), (8, 900)])
def test_the_source_has_the_source_size_whatever_the_photo(size: tuple[int, int]) -> None:
    source = IMAGENET.source(noise(*size))
    assert source.shape == (32, 32, 3)
    assert source.dtype == np.uint8
    assert np.array_equal(IMAGENET.source(source), source)


def test_the_source_is_the_centre_of_the_photo() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 38:82] = 200  # the middle square and as much more as interpolation reaches
    assert (IMAGENET.source(wide) == 200).all()
    assert (IMAGENET.source(np.ascontiguousarray(wide.transpose(1, 0, 2))) == 200).all()


def test_a_square_photo_is_resized_as_pillow_does() -> None:
    expected = np.asarray(Image.fromarray(noise(70, 70)).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(IMAGENET.source(noise(70, 70)), expected)


def test_of_a_long_strip_nothing_is_enlarged_that_the_crop_cannot_reach() -> None:
    strip = np.zeros((8, 200_000, 3), np.uint8)  # enlarged as a whole it would hold 26 thousand million pixels
    strip[:, 99_980:100_020] = 90
    large = Preprocessing(1024, "bicubic", IMAGENET.mean, IMAGENET.std)
    assert (large.source(strip) == 90).all()


@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_a_tensor_is_contiguous_float32_nchw(size: int) -> None:
    tensor = IMAGENET.tensor(noise(32, 32), size)
    assert tensor.shape == (1, 3, size, size)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous


def test_a_tensor_is_normalised_channel_by_channel() -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    source[:] = (255, 51, 0)
    tensor = Preprocessing(32, "bicubic", (0.5, 0.1, 0.25), (0.5, 0.2, 0.25)).tensor(source, 48)
    assert np.allclose(tensor[0].reshape(3, -1).T, (1, 0.5, -1), atol=1e-6)


def test_preprocessing_at_source_size_resamples_nothing() -> None:
    plain = Preprocessing(32, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    back = plain.tensor(noise(32, 32), 32)[0].transpose(1, 2, 0) * 255
    assert np.array_equal(np.rint(back).astype(np.uint8), noise(32, 32))


def test_the_golden_digest_never_changes() -> None:
    """Bundles carry it: a change here means that bundles made before give other pixels now."""
    assert IMAGENET.golden_sha256((64,)) == GOLDEN


def test_the_golden_digest_does_not_hang_on_the_order_of_sizes() -> None:
    assert IMAGENET.golden_sha256((64, 32, 64)) == IMAGENET.golden_sha256((32, 64))


@pytest.mark.parametrize(
    ("other", "sizes"),
    [
        (Preprocessing(32, "bilinear", IMAGENET.mean, IMAGENET.std), (64,)),
        (Preprocessing(32, "bicubic", (0.485, 0.456, 0.407), IMAGENET.std), (64,)),
        (Preprocessing(32, "bicubic", IMAGENET.mean, (0.229, 0.224, 0.226)), (64,)),
        (Preprocessing(33, "bicubic", IMAGENET.mean, IMAGENET.std), (64,)),
        (IMAGENET, (65,)),
        (IMAGENET, (32, 64)),
    ],
    ids=["interpolation", "mean", "std", "source-size", "size", "sizes"],
)
def test_the_golden_digest_follows_every_parameter(other: Preprocessing, sizes: tuple[int, ...]) -> None:
    assert other.golden_sha256(sizes) != IMAGENET.golden_sha256((64,))


def test_a_pass_over_many_images_at_224_pixels_holds_memory_flat() -> None:
    shapes, count = Shapes(), 500  # as float32 they would hold 300 MB
    tracemalloc.start()
    try:
        for index in range(count):
            IMAGENET.tensor(IMAGENET.source(shapes.image("test", index)), 224)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6
