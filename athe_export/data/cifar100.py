"""CIFAR-100 in its official Python layout (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009).

Splits: `test` is the official test set; `holdout` is every tenth image of the official training set, for thresholds
and model choice; `train` is the other nine tenths. Files are checked against the published md5 before they are read,
and read by an unpickler that knows numpy arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.data.source import Progress, no_progress
from athe_export.errors import DatasetError
from athe_export.preprocessing import Pixels

FOLDER = "cifar-100-python"
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
HOLDOUT_EVERY = 10


@dataclass(frozen=True)
class Cifar100:
    """The opened dataset; each official file is read once, on first use, and kept as uint8 [n, 3072]."""

    folder: Path

    @classmethod
    def open(cls, data_root: Path | None, progress: Progress = no_progress) -> Cifar100:
        """Opens `data_root/cifar-100-python`, or the copy in the user cache, downloading it where absent.

        Raises:
            DatasetError: a file is missing, truncated or has another md5.
        """
        if data_root is None:
            from athe_export.data.download import cached_cifar100

            folder = cached_cifar100(progress) / FOLDER
            remedy = f"remove {folder}; the archive is then downloaded again"
        else:
            folder = data_root / FOLDER
            remedy = (
                f"give a data root that holds {FOLDER}/ with train, test and meta, "
                "or give none: the archive is then downloaded to the user cache"
            )
        for name, md5 in MD5.items():
            _check_file(folder / name, md5, remedy)
        return cls(folder)

    @property
    def name(self) -> str:
        return "cifar100"

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "holdout", "test")

    @property
    def digest(self) -> str:
        return hashlib.sha256("".join(sorted(MD5.values())).encode()).hexdigest()

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(n.decode() for n in _unpickle(self.folder / "meta")[b"fine_label_names"])

    def size(self, split: str) -> int:
        return len(self._positions(split))

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        return self._file(split)[1][self._positions(split)]

    def image(self, split: str, index: int) -> Pixels:
        flat = self._file(split)[0][self._positions(split)[index]]
        return np.ascontiguousarray(flat.reshape(3, 32, 32).transpose(1, 2, 0))

    def _positions(self, split: str) -> npt.NDArray[np.int64]:
        return self._split_positions[split]

    @cached_property
    def _split_positions(self) -> dict[str, npt.NDArray[np.int64]]:
        every = np.arange(50_000)
        held = every % HOLDOUT_EVERY == HOLDOUT_EVERY - 1
        return {"train": every[~held], "holdout": every[held], "test": np.arange(10_000)}

    def _file(self, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return self._test if split == "test" else self._train

    @cached_property
    def _train(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return _read_images(self.folder / "train")

    @cached_property
    def _test(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return _read_images(self.folder / "test")


def _check_file(path: Path, md5: str, remedy: str) -> None:
    try:
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError as err:
        raise DatasetError(f"a CIFAR-100 file cannot be read: {err.strerror}", where=str(path), remedy=remedy) from None
    if found != md5:
        raise DatasetError(
            f"md5 is {found}, the official file's is {md5}: truncated or changed", where=str(path), remedy=remedy
        )


def _read_images(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    content = _unpickle(path)
    return np.asarray(content[b"data"], np.uint8), np.asarray(content[b"fine_labels"], np.int64)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            import numpy._core.multiarray as multiarray

            return {"_reconstruct": multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}[name]
        if (module, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"refused {module}.{name}")


def _unpickle(path: Path) -> dict[bytes, Any]:
    content: dict[bytes, Any] = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return content
