"""What the router is trained on: images that the branches were not fitted on, in several views, and what each asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from athe_export.errors import RecipeError
from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import TrainSpec
from athe_export.runtime.routing import difficulty_target, gain_target
from athe_export.training.augment import crop_and_flip
from athe_export.training.evaluate import BATCH, branch_correct, label_probabilities
from athe_export.training.images import ImageSet
from athe_export.training.plan import generator_of


def set_apart(images: ImageSet, spec: TrainSpec) -> tuple[ImageSet, ImageSet]:
    """The images to fit the branches on, and those for the router: `router_images` of them, fixed by the seed.

    With none set apart both are all images.

    Raises:
        RecipeError: no more images than are to be set apart.
    """
    count = spec.router_images
    if not count:
        return images, images
    if count >= len(images):
        raise RecipeError(
            f"{count} of {len(images)} training images leaves none for the branches",
            where="train.router_images",
            remedy="set fewer apart",
        )
    order = torch.randperm(len(images), generator=generator_of(spec.seed, "images for the router"))
    return images.taken(order[count:].sort().values), images.taken(order[:count].sort().values)


def views_of(images: ImageSet, spec: TrainSpec) -> ImageSet:
    """`router_views` views of each image, one view of all images after the other: as they are, then cropped and flipped."""
    views = [images.pixels]
    for view in range(1, spec.router_views):
        generator = generator_of(spec.seed, "view for the router", view)
        views += [crop_and_flip(pixels, spec.crop_padding, spec.flip, generator) for pixels, _ in images.batches(BATCH)]
    return ImageSet(torch.cat(views), images.labels.repeat(spec.router_views))


def router_targets(model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """`difficulty_target` or `gain_target` of each image under the model's branches as they are now, float32 [n] on
    `device`."""
    spec = model.recipe.train
    assert spec is not None
    if spec.router_target == "probability":
        targets = gain_target(label_probabilities(model, images, preprocessing, device))
    else:
        targets = difficulty_target(branch_correct(model, images, preprocessing, device))
    return torch.from_numpy(targets).to(device)


def targets_said(targets: Tensor, spec: TrainSpec) -> str:
    """One line for a person: what the measured targets, float32 [n], come to."""
    if spec.router_target == "probability":
        gain = 100 * float((2 * targets - 1).mean())
        return (
            f"on {len(targets)} views of images for the router the hardest branch is {gain:.1f} pp surer of the right answer"
        )
    hard = 100 * float((targets > 0).float().mean())
    return f"{hard:.1f}% of {len(targets)} views of images for the router need more than the easiest branch"
