"""The loss of each training phase: the dense backbone, the branches jointly, the router."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from athe_export.model.athe import AtheModel
from athe_export.model.deit import Trace
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import TrainSpec
from athe_export.runtime.routing import difficulty_target
from athe_export.training.images import ImageSet, to_input

Loss = Callable[[Tensor, Tensor], Tensor]  # (normalised images, targets) -> scalar


def dense_loss(model: AtheModel, spec: TrainSpec) -> Loss:
    """Cross-entropy of the dense path."""

    def loss(image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(model.backbone(image).float(), label, label_smoothing=spec.label_smoothing)

    return loss


def adaptive_loss(model: AtheModel, spec: TrainSpec) -> Loss:
    """Mean over the dense path and all branches; branches also match the dense path's distribution and attention.

    Self-distillation of logits as in Hinton et al., Distilling the Knowledge in a Neural Network, 2015, at
    temperature 1. A learned scorer's softmax over the patches is drawn to the dense path's CLS attention in the blocks
    after its stage, which is what those patches are worth later on (attentiveness of Liang et al., EViT, 2022,
    section 3.2, taken from the later blocks).
    """

    def loss(image: Tensor, label: Tensor) -> Tensor:
        seen = Trace()
        dense = model.backbone(image, trace=seen).float()
        teacher = dense.detach().log_softmax(-1)
        total = F.cross_entropy(dense, label, label_smoothing=spec.label_smoothing)
        for branch in model.recipe.branches:
            chosen = Trace()
            logits = model.logits(image, branch, chosen).float()
            hard = F.cross_entropy(logits, label, label_smoothing=spec.label_smoothing)
            soft = F.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean", log_target=True)
            total = total + (1 - spec.distill) * hard + spec.distill * soft
            if branch.scorer == "linear" and chosen.scores is not None:
                total = total + spec.distill * _scorer_loss(
                    chosen.scores, seen.cls_attention[branch.prune[0].after_blocks :]
                )
        return total / (1 + len(model.recipe.branches))

    return loss


def _scorer_loss(scores: Tensor, later_attention: list[Tensor]) -> Tensor:
    """KL of softmax(scores) [batch, patches] from the mean CLS attention of the given blocks."""
    worth = torch.stack([a.detach().float().mean(1) for a in later_attention]).mean(0)
    worth = worth / worth.sum(-1, keepdim=True)
    return F.kl_div(scores.float().log_softmax(-1), worth, reduction="batchmean")


def router_loss(model: AtheModel) -> Loss:
    """Binary cross-entropy of the difficulty against `difficulty_target`."""
    router = model.router
    assert router is not None

    def loss(image: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(router.logit(image).float(), target)

    return loss


@torch.no_grad()
def branch_correct(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Whether the dense path (column 0) and each branch are right on each image, bool [n, 1 + branches]."""
    model.eval()
    rows = []
    for pixels, label in images.batches(256):
        image = to_input(pixels.to(device), model.recipe.model.image_size, preprocessing)
        logits = [model.backbone(image), *(model.logits(image, b) for b in model.recipe.branches)]
        rows.append(torch.stack([x.argmax(-1).cpu() == label for x in logits], 1))
    correct: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = torch.cat(rows).numpy()
    return correct


@torch.no_grad()
def router_scores(
    model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Difficulty of each image, float32 [n]."""
    assert model.router is not None and model.recipe.router is not None
    model.eval()
    size = model.recipe.router.image_size
    rows = [model.router(to_input(p.to(device), size, preprocessing)).float().cpu() for p, _ in images.batches(256)]
    scores: np.ndarray[tuple[int], np.dtype[np.float32]] = torch.cat(rows).numpy()
    return scores


def router_targets(model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """`difficulty_target` of each image under the model's branches as they are now, float32 [n]."""
    return torch.from_numpy(difficulty_target(branch_correct(model, images, preprocessing, device)[:, 1:]))
