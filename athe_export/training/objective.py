"""What a phase fits to what: its images and their targets, its loss, its parameters, and the batches of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import TrainSpec
from athe_export.training.augment import augment, crop_and_flip, mix
from athe_export.training.images import ImageSet, to_input
from athe_export.training.phases import Loss, adaptive_loss, dense_loss, router_features_loss, router_loss
from athe_export.training.plan import Phase


@dataclass(frozen=True)
class Corpus:
    """The images of a run: `train` and `router` to fit, `holdout` to watch, `calibration` to rank heads on."""

    train: ImageSet
    router: ImageSet
    holdout: ImageSet
    calibration: ImageSet

    def to(self, device: torch.device) -> Corpus:
        """All of it in that device's memory."""
        return Corpus(*(s.to(device) for s in (self.train, self.router, self.holdout, self.calibration)))


@dataclass(frozen=True)
class Objective:
    """Images, `size` pixels wide and each `repeats` times in a batch, to whose targets `loss` fits `parameters`."""

    phase: Phase
    spec: TrainSpec
    images: ImageSet
    loss: Loss
    parameters: list[torch.nn.Parameter]
    size: int
    repeats: int

    @property
    def steps(self) -> int:
        """Steps of an epoch; what does not fill a batch is left out, and drawn in another epoch."""
        images = min(self.phase.spec.images or len(self.images), len(self.images))
        return images // self.phase.spec.batch_size or 1

    def chosen(self, order: Tensor, step: int) -> Tensor:
        """Positions of a step's images, int64 [batch], given the epoch's order of all."""
        different = self.phase.spec.batch_size // self.repeats
        return order[step * different : (step + 1) * different].repeat_interleave(self.repeats)

    def batch(
        self, chosen: Tensor, preprocessing: Preprocessing, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Normalised images float32 [batch, 3, size, size] and their targets, augmented by `generator`."""
        spec, light = self.spec, self.phase.spec.light
        pixels, targets = self.images.pixels[chosen], self.images.labels[chosen]
        if self.phase.kind != "router":
            pixels = augment(pixels, spec, light, generator)
            if not light:
                pixels, targets = mix(pixels, targets, classes, spec, generator)
        elif spec.router_views == 1:  # of several views, the targets hold for each as it is
            pixels = crop_and_flip(pixels, spec.crop_padding, spec.flip, generator)
        return to_input(pixels, self.size, preprocessing), targets


def branch_objective(phase: Phase, model: AtheModel, images: ImageSet) -> Objective:
    """Of a dense or adaptive phase: everything but the router is fitted to labels."""
    spec = model.recipe.train
    assert spec is not None
    parameters = [p for n, p in model.named_parameters() if not n.startswith("router.")]
    loss = (dense_loss if phase.kind == "dense" else adaptive_loss)(model, spec, phase.spec)
    size = phase.spec.image_size or model.recipe.model.image_size
    return Objective(phase, spec, images, loss, parameters, size, spec.repeated_augmentation)


def router_objective(phase: Phase, model: AtheModel, images: ImageSet) -> Objective:
    """Of the router's phases: the router alone is fitted, to classes first where asked, then to measured targets."""
    spec = model.recipe.train
    assert spec is not None and model.router is not None and model.recipe.router is not None
    parameters = list(model.router.parameters())
    loss = router_loss(model) if phase.kind == "router" else router_features_loss(model, spec)
    size = phase.spec.image_size or model.recipe.router.image_size
    return Objective(phase, spec, images, loss, parameters, size, 1)
