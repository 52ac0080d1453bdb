"""The routed system in torch fp32: what every deployed graph is held against. Images stream in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from athe_export.branches import BranchGraphSource
from athe_export.data.source import Dataset, Progress
from athe_export.parity.reference import Reference
from athe_export.preprocessing import Pixels, Preprocessing

_BATCH = 64


class TorchReference:
    """Router and branches as fixed-shape modules, run in batches.

    Args:
        sources: of `branches.graph_sources`; a router first where there is one.
        preprocessing: shared with the deployed runtime.
    """

    def __init__(self, sources: tuple[BranchGraphSource, ...], preprocessing: Preprocessing) -> None:
        self._router = next((s for s in sources if s.role == "router"), None)
        self._branches = [s for s in sources if s.role != "router"]
        self._preprocessing = preprocessing

    @torch.no_grad()
    def outputs(self, images: Sequence[Pixels]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits [branches, n, classes] and difficulty [n] (zeros without a router) of source images."""
        size = self._branches[0].image_size  # all branches see the backbone's input
        tensor = self._tensor(images, size)
        logits = [branch.module(tensor).numpy() for branch in self._branches]
        if self._router is not None and self._router.image_size == size:
            return np.stack(logits), self._router.module(tensor).numpy()
        return np.stack(logits), self._scores(images)

    @torch.no_grad()
    def scores(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Difficulty [n] alone, of any number of source images."""
        return np.concatenate([self._scores(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])

    def run(self, dataset: Dataset, split: str, ids: npt.NDArray[np.int64], progress: Progress) -> Reference:
        """The reference over the images `ids` of a split."""
        logits, scores = [], []
        for start in range(0, len(ids), _BATCH):
            chunk = list(self._sources(dataset, split, ids[start : start + _BATCH]))
            batch_logits, batch_scores = self.outputs(chunk)
            logits.append(batch_logits.astype(np.float16))
            scores.append(batch_scores)
            progress("torch fp32 reference", min(start + _BATCH, len(ids)), len(ids))
        labels = dataset.labels(split)[ids]
        return Reference(ids, labels, np.concatenate(logits, 1), np.concatenate(scores).astype(np.float32))

    def _scores(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        if self._router is None:
            return np.zeros(len(images), np.float32)
        difficulty: npt.NDArray[np.float32] = self._router.module(self._tensor(images, self._router.image_size)).numpy()
        return difficulty

    def _tensor(self, images: Sequence[Pixels], size: int) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([self._preprocessing.tensor(image, size) for image in images]))

    def _sources(self, dataset: Dataset, split: str, ids: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        return (self._preprocessing.source(dataset.image(split, int(i))) for i in ids)
