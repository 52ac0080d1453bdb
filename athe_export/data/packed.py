"""CIFAR-100 as one file, or as parts of it: for training on a machine to which little can be carried.

The file is a line that says what it is, then zlib over the images of the official files, in their order, followed by
labels and class names. Before compression each image is taken apart: red and blue as differences from green, every value
as its difference from left + above - above left (the plane of ISO 14495-1, annex A), all modulo 256. That costs nothing
and saves a third.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from athe_export.data.cifar100 import Cifar100
from athe_export.errors import DatasetError

MAGIC = b"athe-export cifar100 packed 1\n"
# sha256 of the content before it is taken apart: known, so that a copy is checked as the official files are by their md5
CONTENT_SHA256 = "80d9e413885ea4f669e42313d9a2f7331243a11f24c1aafb32d818f2a93b4a56"

Images = npt.NDArray[np.uint8]  # [n, 3, 32, 32]


@dataclass(frozen=True)
class PackedCifar100(Cifar100):
    """The same dataset as from the official files, splits and digest included; `folder` is where the file lies."""

    images: Images = field(repr=False, compare=False)
    classes: npt.NDArray[np.int64] = field(repr=False, compare=False)
    official_train: int = field(repr=False, compare=False)  # how many of them are the official training set
    names: tuple[str, ...] = field(repr=False, compare=False)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return self.names

    @cached_property
    def _train(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return self.images[: self.official_train].reshape(-1, 3072), self.classes[: self.official_train]

    @cached_property
    def _test(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return self.images[self.official_train :].reshape(-1, 3072), self.classes[self.official_train :]


def pack(dataset: Cifar100) -> bytes:
    """The dataset as the content of one file."""
    (train, train_labels), (test, test_labels) = dataset._train, dataset._test
    images = np.concatenate([train, test]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([train_labels, test_labels])
    return MAGIC + zlib.compress(_content(_apart(images), labels, len(train), dataset.class_names), 9)


def content_sha256(dataset: Cifar100) -> str:
    """What identifies the packed content."""
    (train, train_labels), (test, test_labels) = dataset._train, dataset._test
    labels = np.concatenate([train_labels, test_labels])
    return hashlib.sha256(_content(np.concatenate([train, test]), labels, len(train), dataset.class_names)).hexdigest()


def open_packed(files: tuple[Path, ...], sha256: str = CONTENT_SHA256) -> PackedCifar100:
    """Reads the file, or its parts, into memory: 184 MB.

    Raises:
        DatasetError: it cannot be read, is truncated or changed.
    """
    remedy = "copy the file again, or pack it again: scripts/pack_training_data.py"
    where = str(files[0])
    try:
        packed = b"".join(p.read_bytes() for p in files)
        if not packed.startswith(MAGIC):
            raise DatasetError("is not a packed CIFAR-100", where=where, remedy=remedy)
        content = zlib.decompress(packed[len(MAGIC) :])
        count, train = int.from_bytes(content[:4]), int.from_bytes(content[4:8])
        images = _together(np.frombuffer(content, np.uint8, count * 3072, 8).reshape(-1, 3, 32, 32))
        labels = np.frombuffer(content, np.uint8, count, 8 + count * 3072).astype(np.int64)
        names = tuple(content[8 + count * 3073 :].decode().split("\n"))
    except (OSError, zlib.error, ValueError) as err:
        raise DatasetError(f"the packed dataset is truncated or damaged: {err}", where=where, remedy=remedy) from None
    dataset = PackedCifar100(files[0].parent, images, labels, train, names)
    found = content_sha256(dataset)
    if found != sha256:
        raise DatasetError(f"sha256 of the packed images is {found}, not {sha256}", where=where, remedy=remedy)
    return dataset


def split_into_parts(content: bytes, limit: int) -> tuple[bytes, ...]:
    """`content` in as few parts of nearly equal size as have at most `limit` bytes each."""
    count = max(1, -(-len(content) // limit))
    size = -(-len(content) // count)
    return tuple(content[i : i + size] for i in range(0, len(content), size))


def _content(images: Images, labels: npt.NDArray[np.int64], train: int, names: tuple[str, ...]) -> bytes:
    counts = len(images).to_bytes(4) + train.to_bytes(4)
    return b"".join([counts, images.tobytes(), labels.astype(np.uint8).tobytes(), "\n".join(names).encode()])


def _apart(images: Images) -> Images:
    values = images.copy()
    values[:, 0] -= images[:, 1]
    values[:, 2] -= images[:, 1]
    values[..., 1:] = np.diff(values, axis=3)  # uint8 wraps around, which loses nothing
    values[:, :, 1:] = np.diff(values, axis=2)
    return values


def _together(values: Images) -> Images:
    images = values.cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    images[:, 0] += images[:, 1]
    images[:, 2] += images[:, 1]
    return images
