"""What the fp32 reference answered on the gate's images: the content of `reference.npz`."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from athe_export.errors import BundleIntegrityError
from athe_export.runtime.routing import RouterPolicy

_TYPES = {"ids": np.int64, "labels": np.int64, "logits": np.float16, "scores": np.float32}


@dataclass(frozen=True)
class Reference:
    """n gate images: ids and labels int64 [n], logits float16 [branches, n, classes], router scores float32 [n].

    Without a router all scores are 0.
    """

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float16]
    scores: npt.NDArray[np.float32]

    def answers(self) -> npt.NDArray[np.int64]:
        """Top class of every branch, [branches, n]."""
        return self.logits.argmax(-1)

    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each branch is right, [n, branches]."""
        return (self.answers() == self.labels).T

    def routed(self, policy: RouterPolicy | None) -> npt.NDArray[np.int64]:
        """Branch position of every image, [n]."""
        return np.zeros(len(self.ids), np.int64) if policy is None else policy.branches_of(self.scores)

    def first(self, limit: int | None) -> Reference:
        """The first `limit` images."""
        if limit is None or limit >= len(self.ids):
            return self
        return Reference(self.ids[:limit], self.labels[:limit], self.logits[:, :limit], self.scores[:limit])

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, ids=self.ids, labels=self.labels, logits=self.logits, scores=self.scores)
        return buffer.getvalue()


def read_reference(content: bytes, where: str) -> Reference:
    """Inverse of `to_bytes`; never unpickles.

    Raises:
        BundleIntegrityError: not such a file.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = Reference(arrays["ids"], arrays["labels"], arrays["logits"], arrays["scores"])
        images = found.logits.shape[1:2]
        if found.logits.ndim != 3 or not found.ids.shape == found.labels.shape == found.scores.shape == images:
            raise ValueError("its arrays do not belong together")
        wrong = [name for name, kind in _TYPES.items() if getattr(found, name).dtype != kind]
        if wrong:
            raise ValueError(f"arrays of other types than documented: {', '.join(wrong)}")
        if not len(found.ids):
            raise ValueError("it holds no images")
        return found
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as err:
        raise BundleIntegrityError(f"is not a reference file: {err}", where=where, remedy="build the bundle again") from None
