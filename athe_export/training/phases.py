"""The loss of each training phase: the dense backbone, the branches jointly, the router."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athe_export.model.athe import AtheModel
from athe_export.model.tokens import Trace
from athe_export.recipe import PhaseSpec, TrainSpec
from athe_export.training.plan import generator_of

_SHARPNESS = 16.0  # the largest logit of a fixed classifier, whose features and directions have length 1

Loss = Callable[[Tensor, Tensor], Tensor]  # (normalised images, labels int64 [n] or shares [n, classes]) -> scalar


def draw_patches(batch: int, patches: int, keep: float) -> Tensor | None:
    """Which patches of each image are seen, int64 [batch, n], drawn without replacement; None: all of them.

    PatchDropout (Liu et al., PatchDropout: Economizing Vision Transformers Using Patch Dropout, WACV 2023, section 3):
    a step costs as much as one of smaller images, and patches look as they will when deployed.
    """
    return None if keep == 1 else torch.rand(batch, patches).topk(int(keep * patches + 0.5), 1).indices


def dense_loss(model: AtheModel, spec: TrainSpec, phase: PhaseSpec) -> Loss:
    """Cross-entropy of the dense path."""

    def loss(image: Tensor, label: Tensor) -> Tensor:
        seen = _seen(model, image, phase.patch_keep)
        logits = model.backbone(image) if seen is None else model.deit(image, seen=seen)
        return F.cross_entropy(logits.float(), label, label_smoothing=spec.label_smoothing)

    return loss


def adaptive_loss(model: AtheModel, spec: TrainSpec, phase: PhaseSpec) -> Loss:
    """Mean over the dense path and all branches; branches also match the dense path's distribution and attention.

    In all but `all_paths` of the steps it is the easiest branch's alone, with the dense path as a teacher that does not
    learn: that branch is furthest behind, and a step of it costs a third.

    Self-distillation of logits as in Hinton et al., Distilling the Knowledge in a Neural Network, 2015, at
    temperature 1. A learned scorer's softmax over the patches is drawn to the dense path's CLS attention in the blocks
    after its stage, which is what those patches are worth later on (attentiveness of Liang et al., EViT, 2022,
    taken from the later blocks). The tokens that a branch keeps are drawn to what the dense path makes of
    the same patches, as in Rao et al., DynamicViT, 2021, section 3.4.
    """

    def loss(image: Tensor, label: Tensor) -> Tensor:
        patches, seen = _seen(model, image, phase.patch_keep), Trace()
        every = phase.all_paths == 1 or torch.rand(()).item() < phase.all_paths
        with torch.set_grad_enabled(every):
            dense = model.deit(image, trace=seen, seen=patches).float()
        teacher = dense.detach().log_softmax(-1)
        branches = model.recipe.branches if every else model.recipe.branches[:1]
        total = F.cross_entropy(dense, label, label_smoothing=spec.label_smoothing) if every else dense.new_zeros(())
        for branch in branches:
            chosen = Trace()
            logits = model.logits(image, branch, chosen, patches).float()
            hard = F.cross_entropy(logits, label, label_smoothing=spec.label_smoothing)
            soft = F.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean", log_target=True)
            total = total + (1 - spec.distill) * hard + spec.distill * soft
            if branch.scorer == "linear" and chosen.scores is not None:
                total = total + spec.distill * _scorer_loss(
                    chosen.scores, seen.cls_attention[branch.prune[0].after_blocks :]
                )
            if spec.distill_tokens:
                total = total + spec.distill_tokens * _token_loss(model.deit.norm, seen, chosen)
        return total / (every + len(branches))

    return loss


def _seen(model: AtheModel, image: Tensor, keep: float) -> Tensor | None:
    """The patches that every path sees in this step: drawn on the CPU, as everything random is."""
    drawn = draw_patches(len(image), (image.shape[-1] // model.recipe.model.patch) ** 2, keep)
    return None if drawn is None else drawn.to(image.device, non_blocking=True)


def _scorer_loss(scores: Tensor, later_attention: list[Tensor]) -> Tensor:
    """KL of softmax(scores) [batch, patches] from the mean CLS attention of the given blocks."""
    worth = torch.stack([a.detach().float().mean(1) for a in later_attention]).mean(0)
    worth = worth / worth.sum(-1, keepdim=True)
    return F.kl_div(scores.float().log_softmax(-1), worth, reduction="batchmean")


def _token_loss(norm: nn.Module, dense: Trace, branch: Trace) -> Tensor:
    """Mean squared distance of a branch's patch tokens, after the last norm, to the dense path's at the same places."""
    assert dense.tokens is not None and branch.tokens is not None
    theirs, own = dense.tokens[:, 1:], branch.tokens[:, 1:]
    if branch.kept is None:
        return F.mse_loss(norm(own).float(), norm(theirs).detach().float())
    theirs = theirs.gather(1, branch.kept.clamp(min=0)[:, :, None].expand(-1, -1, theirs.shape[2]))
    if branch.fused:  # what was fused has no place in the image; the last stage's is behind the kept ones
        patch = branch.kept >= 0
        theirs, own = theirs[patch], own[:, : branch.kept.shape[1]][patch]
    return F.mse_loss(norm(own).float(), norm(theirs).detach().float())


def router_features_loss(model: AtheModel, spec: TrainSpec) -> Loss:
    """Cross-entropy of the classes by the router's features and a fixed classifier, which is not kept.

    Of which class an image is says much about how hard it is, and there are labels for far more images than there are
    for the router's own task. The classifier is drawn once from the seed and never trained (Hoffer et al., Fix your
    classifier: the marginal value of training the last weight layer, ICLR 2018), so that it is no part of
    the model or of a run's state.
    """
    router, classes = model.router, model.recipe.model.classes
    assert router is not None
    drawn = torch.randn(classes, router.classifier.in_features, generator=generator_of(spec.seed, "fixed classifier"))
    directions = F.normalize(drawn, dim=1).to(router.classifier.weight.device)

    def loss(image: Tensor, label: Tensor) -> Tensor:
        seen = image.contiguous(memory_format=torch.channels_last)
        found = F.normalize(router.features(seen).mean((2, 3)).float(), dim=1)
        return F.cross_entropy(_SHARPNESS * found @ directions.T, label, label_smoothing=spec.label_smoothing)

    return loss


def router_loss(model: AtheModel) -> Loss:
    """Binary cross-entropy of the difficulty against `difficulty_target`."""
    router = model.router
    assert router is not None

    def loss(image: Tensor, target: Tensor) -> Tensor:
        seen = image.contiguous(memory_format=torch.channels_last)
        return F.binary_cross_entropy_with_logits(router.logit(seen).float(), target)

    return loss
