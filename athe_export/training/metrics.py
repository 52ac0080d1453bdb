"""What a trained model reached on the test split: the content of the metrics file beside a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from athe_export.data.source import Dataset, Progress
from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Preprocessing
from athe_export.runtime.routing import fit_policy
from athe_export.training.images import ImageSet
from athe_export.training.phases import branch_correct, router_scores


def metrics_of(
    model: AtheModel,
    dataset: Dataset,
    preprocessing: Preprocessing,
    holdout: ImageSet,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Top-1 of every path on the test split; the router's bounds are fitted on the held-out images.

    Of a dataset that knows how hard its images are, both halves are measured apart.
    """
    names = ["dense", *(b.name for b in model.recipe.branches)]
    test = ImageSet.load(dataset, "test", preprocessing, None, progress)
    if model.head_rank is None:
        return {"images": len(test), "note": "stopped before the branches were trained"}
    correct = branch_correct(model, test, preprocessing, device)
    result: dict[str, Any] = {"images": len(test), "top1": {n: _share(c) for n, c in zip(names, correct.T, strict=True)}}
    if model.router is not None:
        held = branch_correct(model, holdout, preprocessing, device)[:, 1:]
        assert model.recipe.router is not None
        scores = router_scores(model, holdout, preprocessing, device)
        policy = fit_policy(len(model.recipe.branches), scores, held, **vars(model.recipe.router.threshold))
        routed = policy.branches_of(router_scores(model, test, preprocessing, device))
        result["router_bounds"] = list(policy.bounds)
        result["top1"]["routed"] = _share(correct[np.arange(len(test)), routed + 1])
        result["share"] = {b.name: _share(routed == i) for i, b in enumerate(model.recipe.branches)}
    is_complex = getattr(dataset, "is_complex", None)
    if is_complex is not None:
        hard = np.array([is_complex("test", i) for i in range(len(test))])
        result["top1_simple_half"] = {n: _share(c[~hard]) for n, c in zip(names, correct.T, strict=True)}
        result["top1_complex_half"] = {n: _share(c[hard]) for n, c in zip(names, correct.T, strict=True)}
    return result


def _share(values: npt.NDArray[np.bool_]) -> float:
    return round(float(values.mean()), 4)
