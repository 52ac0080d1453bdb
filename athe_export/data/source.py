"""What a dataset is to the pipeline, and opening one by its recipe name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from athe_export.errors import DatasetError, RecipeError
from athe_export.preprocessing import Pixels

DATASETS = ("cifar100", "folder", "shapes")


class Dataset(Protocol):
    """Labelled images in named splits, addressed by position: `image(split, i)` is uint8 RGB [h, w, 3]."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def digest(self) -> str:
        """sha256 that identifies the content of the whole set."""
        ...

    @property
    def splits(self) -> tuple[str, ...]: ...

    def size(self, split: str) -> int: ...

    def labels(self, split: str) -> npt.NDArray[np.int64]: ...

    def image(self, split: str, index: int) -> Pixels: ...


Progress = Callable[[str, int, int], None]


def no_progress(step: str, done: int, total: int) -> None:
    """A progress sink that shows nothing."""


def open_dataset(
    name: str,
    data_root: Path | None = None,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Opens `cifar100` (official files or a packed one; downloaded to the user cache without a root), `folder`, `shapes`.

    Raises:
        DatasetError: files missing or corrupt, or no such dataset.
        EnvironmentFailure: the download cannot be made or written.
    """
    if name == "cifar100":
        from athe_export.data.cifar100 import Cifar100
        from athe_export.data.location import packed_files
        from athe_export.data.packed import open_packed

        if data_root is not None and (files := packed_files(data_root)):
            return open_packed(files)
        return Cifar100.open(data_root, progress)
    if name == "folder":
        from athe_export.data.folder import ImageFolder

        if folder is None:
            raise ValueError("a folder dataset needs its folder")
        return ImageFolder(folder)
    if name != "shapes":
        raise DatasetError(f"there is no dataset {name!r}", remedy="use one of: " + ", ".join(DATASETS))
    from athe_export.data.shapes import Shapes

    return Shapes()


def require_split(dataset: Dataset, split: str, key: str) -> None:
    """Raises RecipeError where `split` is not one of the dataset's."""
    if split not in dataset.splits:
        raise RecipeError(
            f"{dataset.name} has no split {split!r}",
            where=key,
            remedy="use one of: " + ", ".join(dataset.splits),
        )


def require_classes(dataset: Dataset, classes: int) -> None:
    """Raises RecipeError where the model has another number of classes than the dataset."""
    found = len(dataset.class_names)
    if found != classes:
        raise RecipeError(
            f"the model has {classes} classes, {dataset.name} has {found}",
            where="model.classes",
            remedy=f"set model.classes to {found} with a checkpoint trained on them",
        )


def pixel_digest(pixels: Pixels) -> str:
    """sha256 of an image's shape and pixels."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
