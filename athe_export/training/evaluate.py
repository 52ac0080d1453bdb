"""What a model answers on a set of images, in fp32 and in batches: the dense path, each branch, and the router's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Preprocessing
from athe_export.training.images import ImageSet, to_input

BATCH = 256
Correct = npt.NDArray[np.bool_]


def dense_correct(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device, size: int | None = None
) -> Correct:
    """Whether the dense path is right on each image, bool [n, 1]."""
    return _correct(model, [model.backbone], images, preprocessing, device, size)


def branch_correct(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device, size: int | None = None
) -> Correct:
    """Whether each branch is right on each image, bool [n, branches]; `size` in place of the model's image size."""
    paths = [lambda image, branch=b: model.logits(image, branch) for b in model.recipe.branches]
    return _correct(model, paths, images, preprocessing, device, size)


@torch.no_grad()
def label_probabilities(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device
) -> npt.NDArray[np.float32]:
    """Each branch's probability of the image's label, float32 [n, branches]."""
    model.eval()
    rows = []
    for pixels, label in images.batches(BATCH):
        image = to_input(pixels.to(device), model.recipe.model.image_size, preprocessing)
        sure = torch.stack([model.logits(image, b).float().softmax(-1) for b in model.recipe.branches], 1)
        rows.append(sure[torch.arange(len(label), device=device), :, label.to(device)])
    found: npt.NDArray[np.float32] = torch.cat(rows).cpu().numpy()
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


@torch.no_grad()
def _correct(
    model: AtheModel,
    paths: Sequence[Callable[[Tensor], Tensor]],
    images: ImageSet,
    preprocessing: Preprocessing,
    device: torch.device,
    size: int | None,
) -> Correct:
    model.eval()
    rows = []
    for pixels, label in images.batches(BATCH):
        image = to_input(pixels.to(device), size or model.recipe.model.image_size, preprocessing)
        rows.append(torch.stack([path(image).argmax(-1) == label.to(device) for path in paths], 1))
    correct: Correct = torch.cat(rows).cpu().numpy()
    return correct
