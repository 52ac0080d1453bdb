"""The recipe's `train` section: phases, and what holds for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from athe_export.schema import key

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class PhaseSpec:
    epochs: int = key("passes over the training images", min=1, max=10000)
    images: int | None = key("images an epoch, drawn anew each; null: all", default=None, min=1)
    image_size: int | None = key("train at this size; null: the model's", default=None, min=8, max=1024)
    patch_keep: float = key("share of the patches that are seen, drawn at random", default=1.0, above=0, max=1)
    lr: float = key("peak learning rate", default=0.001, above=0, max=1)
    batch_size: int = key("images a step", default=128, min=1, max=65536)
    all_paths: float = key("share of steps for all paths; the rest are the easiest branch's", default=1.0, min=0, max=1)
    light: bool = key("only crop, flip and label smoothing of the regularisation below", default=False)

    def patches_seen(self, image_size: int, patch: int) -> int:
        """Number of patches of an image that reach the first block, of a model of that size; round-half-up."""
        side = (self.image_size or image_size) // patch
        return int(self.patch_keep * side**2 + 0.5)


@dataclass(frozen=True)
class TrainSpec:
    dense: tuple[PhaseSpec, ...] = key("backbone phases, in order")
    adaptive: tuple[PhaseSpec, ...] = key("joint fine-tuning of all branches")
    router_features: tuple[PhaseSpec, ...] = key("the router first learns the classes", default=())
    router: tuple[PhaseSpec, ...] = key("router phases", default=())
    seed: int = key("of initial weights, data order and augmentation", default=0, min=0, max=MAX_SEED)
    weight_decay: float = key("AdamW weight decay", default=0.05, min=0, max=10)
    warmup_epochs: float = key("linear warm-up of the first phase's learning rate", default=1.0, min=0, max=1000)
    label_smoothing: float = key("label smoothing", default=0.1, min=0, max=0.9)
    crop_padding: int = key("random crop after padding this many source pixels", default=4, min=0, max=64)
    flip: bool = key("random horizontal flip", default=True)
    trivial_augment: bool = key("TrivialAugment (wide)", default=False)
    random_erasing: float = key("share of images with a part erased", default=0.0, min=0, max=1)
    mixup: float = key("alpha of mixup's Beta distribution; 0: none", default=0.0, min=0, max=10)
    cutmix: float = key("alpha of CutMix's Beta distribution; 0: none", default=0.0, min=0, max=10)
    mix_probability: float = key("share of steps with mixup or CutMix", default=1.0, min=0, max=1)
    repeated_augmentation: int = key("times that an image stands in a batch, augmented anew", default=1, min=1, max=64)
    stochastic_depth: float = key("largest rate at which a block is skipped", default=0.0, min=0, max=0.9)
    ema: float = key("decay of the averaged weights, which are the ones kept; 0: none", default=0.0, min=0, max=0.99999)
    distill: float = key("weight of self-distillation from the dense path", default=0.5, min=0, max=1)
    distill_tokens: float = key("weight of the kept tokens' distance to the dense path's", default=0.0, min=0, max=100)
    rank_epochs: int = key("heads are ranked before each of this many adaptive epochs, then frozen", default=1, min=1)
    watch_images: int | None = key("held-out images to watch the run on; null: all", default=None, min=1)
    router_images: int = key("training images that only the router is trained on; 0: none apart", default=0, min=0)
    router_target: Literal["answer", "probability"] = key(
        "what the router learns of a branch: whether it is right, or how sure it is of the right answer", default="answer"
    )
    router_views: int = key("views of a router image that the branches are measured on", default=1, min=1, max=64)
    images: int | None = key("train on the first N images of the split; null: all", default=None, min=1)

    @property
    def fits_branches(self) -> bool:
        """Whether a phase changes more than the router."""
        return bool(self.dense or self.adaptive)
