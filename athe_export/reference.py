"""The routed system in torch fp32: what every deployed graph is held against. Images stream in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from athe_export.branches import BranchGraphSource, BranchModule
from athe_export.data.source import Dataset, Progress
from athe_export.model.tokens import Trace
from athe_export.parity.answers import TargetAnswers
from athe_export.parity.reference import Reference
from athe_export.preprocessing import Pixels, Preprocessing
from athe_export.runtime.routing import RouterPolicy

_BATCH = 64


@dataclass(frozen=True)
class TracedReference:
    """The reference over n images, and what `reference.npz` has no room for.

    Attributes:
        routed: the answers of the branch that each image takes, its logits not rounded to float16.
        kept: per image the patches that this branch keeps to its end, int64 [k]; None where it prunes nothing.
    """

    reference: Reference
    routed: TargetAnswers
    kept: tuple[npt.NDArray[np.int64] | None, ...]


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
        return np.stack(logits), self._scores(images, tensor)

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

    @torch.no_grad()
    def run_traced(
        self,
        dataset: Dataset,
        split: str,
        ids: npt.NDArray[np.int64],
        policy: RouterPolicy | None,
        progress: Progress,
    ) -> TracedReference:
        """`run`, and in the same passes the unrounded logits and kept tokens of the branch that each image takes."""
        logits, scores, routed, own, kept = [], [], [], [], []
        for start in range(0, len(ids), _BATCH):
            chunk = list(self._sources(dataset, split, ids[start : start + _BATCH]))
            tensor = self._tensor(chunk, self._branches[0].image_size)
            traced = [_traced(branch, tensor) for branch in self._branches]
            stacked, batch_scores = np.stack([found for found, _ in traced]), self._scores(chunk, tensor)
            branch = np.zeros(len(chunk), np.int64) if policy is None else policy.branches_of(batch_scores)
            logits.append(stacked.astype(np.float16))
            scores.append(batch_scores.astype(np.float32))
            routed.append(branch)
            own.append(stacked[branch, np.arange(len(chunk))])
            kept += [None if tokens is None else tokens[i] for i, tokens in enumerate(traced[b][1] for b in branch)]
            progress("torch fp32 reference", min(start + _BATCH, len(ids)), len(ids))
        labels = dataset.labels(split)[ids]
        reference = Reference(ids, labels, np.concatenate(logits, 1), np.concatenate(scores))
        return TracedReference(reference, TargetAnswers(np.concatenate(routed), np.concatenate(own), "fp32"), tuple(kept))

    @torch.no_grad()
    def answers_with_tokens(
        self, branch: int, images: Sequence[Pixels], chosen: Sequence[npt.NDArray[np.int64]]
    ) -> npt.NDArray[np.int64]:
        """Top classes [n] of a branch that keeps the tokens it is told, int64 [n, k] a prune stage, of source images."""
        source, answers = self._branches[branch], []
        assert isinstance(source.module, BranchModule)
        for start in range(0, len(images), _BATCH):
            tensor = self._tensor(images[start : start + _BATCH], source.image_size)
            told = [torch.from_numpy(tokens[start : start + _BATCH]) for tokens in chosen]
            answers.append(source.module.with_tokens(tensor, told).argmax(-1).numpy())
        return np.concatenate(answers)

    def _scores(self, images: Sequence[Pixels], tensor: torch.Tensor | None = None) -> npt.NDArray[np.float32]:
        """Difficulty [n]; `tensor` is used where the images are in it at the router's size."""
        if self._router is None:
            return np.zeros(len(images), np.float32)
        size = self._router.image_size
        if tensor is None or tensor.shape[-1] != size:
            tensor = self._tensor(images, size)
        difficulty: npt.NDArray[np.float32] = self._router.module(tensor).numpy()
        return difficulty

    def _tensor(self, images: Sequence[Pixels], size: int) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([self._preprocessing.tensor(image, size) for image in images]))

    def _sources(self, dataset: Dataset, split: str, ids: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        return (self._preprocessing.source(dataset.image(split, int(i))) for i in ids)


def _traced(branch: BranchGraphSource, tensor: torch.Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]:
    """Logits [n, classes] of a branch, and the patches it keeps to its end [n, k]; None where it prunes nothing."""
    if not isinstance(branch.module, BranchModule):  # a model of which no branch drops anything
        return branch.module(tensor).numpy(), None
    trace = Trace(cls_attention=cast(list[torch.Tensor], deque(maxlen=0)))  # it would hold every block's attention
    logits: npt.NDArray[np.float32] = branch.module.traced(tensor, trace).numpy()
    return logits, None if trace.kept is None else trace.kept.numpy()
