"""What a model answers on a set of images, in fp32 and in batches: the dense path, each branch, and the router's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Preprocessing
from athe_export.training.images import ImageSet, to_input

BATCH = 256
Correct = npt.NDArray[np.bool_]
_Path = Callable[[Tensor], Tensor]  # normalised images -> logits


def dense_correct(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device, size: int | None = None
) -> Correct:
    """Whether the dense path is right on each image, bool [n, 1]."""
    return _correct(model, [model.backbone], images, preprocessing, device, size)


def branch_correct(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device, size: int | None = None
) -> Correct:
    """Whether each branch is right on each image, bool [n, branches]; `size` in place of the model's image size."""
    return _correct(model, _branch_paths(model), images, preprocessing, device, size)


def label_probabilities(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device
) -> npt.NDArray[np.float32]:
    """Each branch's probability of the image's label, float32 [n, branches]."""
    rows = _of_paths(model, _branch_paths(model), images, preprocessing, device, None, _probability)
    found: npt.NDArray[np.float32] = rows.numpy()
    return found


@torch.no_grad()
def router_scores(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device
) -> npt.NDArray[np.float32]:
    """Difficulty of each image, float32 [n]."""
    assert model.router is not None and model.recipe.router is not None
    model.eval()
    size = model.recipe.router.image_size
    rows = [model.router(to_input(p.to(device), size, preprocessing)).float() for p, _ in images.batches(BATCH)]
    scores: npt.NDArray[np.float32] = torch.cat(rows).cpu().numpy()
    return scores


def _branch_paths(model: AtheModel) -> list[_Path]:
    return [partial(model.logits, branch=b) for b in model.recipe.branches]


def _correct(
    model: AtheModel,
    paths: Sequence[_Path],
    images: ImageSet,
    preprocessing: Preprocessing,
    device: torch.device,
    size: int | None,
) -> Correct:
    correct: Correct = _of_paths(model, paths, images, preprocessing, device, size, _right).numpy()
    return correct


@torch.no_grad()
def _of_paths(
    model: AtheModel,
    paths: Sequence[_Path],
    images: ImageSet,
    preprocessing: Preprocessing,
    device: torch.device,
    size: int | None,
    said: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """What `said` makes of each path's logits [batch, classes] and the labels [batch], on the CPU, [n, paths]."""
    model.eval()
    rows = []
    for pixels, label in images.batches(BATCH):
        image, labels = to_input(pixels.to(device), size or model.recipe.model.image_size, preprocessing), label.to(device)
        rows.append(torch.stack([said(path(image), labels) for path in paths], 1))
    return torch.cat(rows).cpu()


def _right(logits: Tensor, label: Tensor) -> Tensor:
    return logits.argmax(-1) == label


def _probability(logits: Tensor, label: Tensor) -> Tensor:
    """Of the label."""
    return logits.float().softmax(-1).gather(1, label[:, None]).squeeze(1)
