"""A folder of images: `<folder>/<split>/<class>/<image>`; classes are the sorted folder names, the same in each split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from athe_export.errors import DatasetError, ImageError
from athe_export.preprocessing import Pixels, read_photo

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageFolder:
    """The dataset; images are decoded one at a time when asked for.

    Raises:
        DatasetError: no splits, no classes, or splits with different classes.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir() or not self.splits:
            raise self._bad("there is no image folder", "make <folder>/<split>/<class>/<image>, e.g. train/cat/1.png")
        for split in self.splits:
            if (classes := _subfolders(self.folder / split)) != self.class_names:
                odd = sorted(set(classes) ^ set(self.class_names))
                raise self._bad(f"split {split!r} has other classes: {', '.join(odd[:5])}", "give every split all classes")
        for split in self.splits:
            if not self._files[split]:
                raise self._bad(f"split {split!r} has no images", "put images into its class folders")

    @property
    def name(self) -> str:
        return "folder"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        return _subfolders(self.folder)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return _subfolders(self.folder / self.splits[0])

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for split in self.splits:
            for path, _ in self._files[split]:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(self.folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()

    def size(self, split: str) -> int:
        return len(self._files[split])

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        return np.array([label for _, label in self._files[split]], np.int64)

    def image(self, split: str, index: int) -> Pixels:
        path = self._files[split][index][0]
        try:
            return read_photo(path).pixels
        except ImageError as err:
            raise DatasetError(f"an image of the dataset {err.what}", where=str(path), remedy=err.remedy) from None

    @cached_property
    def _files(self) -> dict[str, list[tuple[Path, int]]]:
        return {
            split: [
                (path, label)
                for label, name in enumerate(self.class_names)
                for path in sorted((self.folder / split / name).iterdir())
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            ]
            for split in self.splits
        }

    def _bad(self, what: str, remedy: str) -> DatasetError:
        return DatasetError(what, where=str(self.folder), remedy=remedy)


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
