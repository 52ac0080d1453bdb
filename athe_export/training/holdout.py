"""What an epoch reached on the held-out images."""

from __future__ import annotations

import numpy as np
import torch

from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Preprocessing
from athe_export.runtime.routing import fit_policy
from athe_export.training.evaluate import Correct, branch_correct, dense_correct, router_scores
from athe_export.training.images import ImageSet
from athe_export.training.plan import Phase


class Holdout:
    """Top-1 of the paths that a phase trains, each as a share of the held-out images that the run is watched on."""

    def __init__(self, model: AtheModel, images: ImageSet, preprocessing: Preprocessing, device: torch.device) -> None:
        self._model, self._images, self._preprocessing, self._device = model, images, preprocessing, device
        assert model.recipe.train is not None
        watched = model.recipe.train.watch_images
        self._watched = ImageSet(images.pixels[:watched], images.labels[:watched])
        self._branches: Correct | None = None  # of a router phase, in which they do not change

    @property
    def names(self) -> tuple[str, ...]:
        """All that `reached` may give."""
        branches = tuple(b.name for b in self._model.recipe.branches)
        return ("dense", *branches, *(("routed", f"share_{branches[0]}") if self._model.router is not None else ()))

    def reached(self, phase: Phase) -> dict[str, float]:
        """In a dense phase the dense path, in an adaptive one every path, both at the phase's size; nothing while the
        router learns its features, whose classifier is not kept; in the router's phases the routed model on all of them,
        its bounds fitted on these very images, and the share of the easiest branch."""
        if phase.kind == "router":
            if self._branches is None:
                self._branches = branch_correct(self._model, self._images, self._preprocessing, self._device)
            return self._routed(self._branches)
        if phase.kind == "router_features":
            return {}
        of = self._model, self._watched, self._preprocessing, self._device
        found = {"dense": dense_correct(*of, phase.spec.image_size).mean()}
        if phase.kind == "adaptive":
            names = [b.name for b in self._model.recipe.branches]
            found |= dict(zip(names, branch_correct(*of, phase.spec.image_size).mean(0), strict=True))
        return {name: round(float(share), 4) for name, share in found.items()}

    def _routed(self, correct: Correct) -> dict[str, float]:
        recipe = self._model.recipe
        assert recipe.router is not None
        scores = router_scores(self._model, self._images, self._preprocessing, self._device)
        policy = fit_policy(len(recipe.branches), scores, correct, **vars(recipe.router.threshold))
        branch = policy.branches_of(scores)
        right = correct[np.arange(len(correct)), branch]
        return {
            "routed": round(float(right.mean()), 4),
            f"share_{recipe.branches[0].name}": round(float((branch == 0).mean()), 4),
        }
