"""What a trained model reached on the test split: the content of the metrics file beside a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from athe_export.data.source import Dataset, Progress
from athe_export.model.athe import AtheModel
from athe_export.parity.statistics import paired_difference, proportion
from athe_export.preprocessing import Preprocessing
from athe_export.runtime.routing import fit_policy
from athe_export.training.evaluate import Correct, branch_correct, dense_correct, router_scores
from athe_export.training.images import ImageSet

CONFIDENCE = 0.95
_ONE_SIDED = (1 + CONFIDENCE) / 2  # of each end of a two-sided interval
Right = npt.NDArray[np.float64]  # per image: 1 right, 0 wrong, between them the chance to be right


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
    test = ImageSet.load(dataset, "test", preprocessing, None, progress).to(device)
    names = [b.name for b in model.recipe.branches]
    branches = branch_correct(model, test, preprocessing, device)
    right = {"dense": dense_correct(model, test, preprocessing, device)[:, 0].astype(np.float64)}
    right |= dict(zip(names, branches.T.astype(np.float64), strict=True))
    result: dict[str, Any] = {"split": "test", "images": len(test)}
    if model.router is not None:
        held = branch_correct(model, holdout, preprocessing, device)
        assert model.recipe.router is not None
        scores = router_scores(model, holdout, preprocessing, device)
        policy = fit_policy(len(names), scores, held, **vars(model.recipe.router.threshold))
        routed = policy.branches_of(router_scores(model, test, preprocessing, device))
        result["router_bounds"] = list(policy.bounds)
        right |= _routings(branches, routed)
        shares = {name: routed == i for i, name in enumerate(names)}
        result["share"] = {name: _share(chosen) for name, chosen in shares.items()}
        result["share_95"] = {name: _interval(chosen) for name, chosen in shares.items()}
        # the easiest branch that is right, or the easiest of all where none is
        result["oracle_share"] = {n: _share(_oracle(branches) == i) for i, n in enumerate(names)}
    result["top1"] = {name: _share(r) for name, r in right.items()}
    result["top1_95"] = {name: _interval(r) for name, r in right.items()}
    result["difference_pp"] = _differences(right, names)
    is_complex = getattr(dataset, "is_complex", None)
    if is_complex is not None:
        hard = np.array([is_complex("test", i) for i in range(len(test))])
        for half, chosen in (("simple", ~hard), ("complex", hard)):
            result[f"top1_{half}_half"] = {n: _share(right[n][chosen]) for n in ("dense", *names)}
    return result


def _routings(correct: Correct, routed: npt.NDArray[np.int64]) -> dict[str, Right]:
    """The routed model, the best that any router could do, and a router that sends the same shares at random: of the last
    each image's chance to be right, so that nothing has to be drawn."""
    images = np.arange(len(correct))
    shares = np.bincount(routed, minlength=correct.shape[1]) / len(routed)
    return {
        "routed": correct[images, routed].astype(np.float64),
        "oracle": correct[images, _oracle(correct)].astype(np.float64),
        "random": correct.astype(np.float64) @ shares,
    }


def _oracle(correct: Correct) -> npt.NDArray[np.int64]:
    return np.where(correct.any(1), correct.argmax(1), 0)


def _differences(right: dict[str, Right], names: list[str]) -> dict[str, dict[str, Any]]:
    """Pairs worth a word, as `routed - dense`: difference in percentage points with its interval, on the same images."""
    pairs = [(name, "dense") for name in names]
    if "routed" in right:
        pairs += [("routed", "dense"), ("routed", names[-1]), ("routed", "random"), ("oracle", "routed")]
    return {f"{a} - {b}": _difference(right[a], right[b]) for a, b in pairs}


def _difference(a: Right, b: Right) -> dict[str, Any]:
    change = a - b
    if np.isin(change, (-1, 0, 1)).all():
        found = paired_difference(int((change > 0).sum()), int((change < 0).sum()), len(change), _ONE_SIDED)
        low, high = found.lower, found.upper
    else:  # chances: the normal interval of a mean
        margin = NormalDist().inv_cdf(_ONE_SIDED) * float(change.std()) / math.sqrt(len(change))
        low, high = float(change.mean()) - margin, float(change.mean()) + margin
    rounded: Callable[[float], float] = lambda share: round(100 * share, 2)  # noqa: E731
    return {"value": rounded(float(change.mean())), "interval_95": [rounded(low), rounded(high)]}


def _share(values: npt.NDArray[Any]) -> float:
    return round(float(values.mean()), 4)


def _interval(values: npt.NDArray[Any]) -> list[float]:
    """Wilson's; of chances it is wider than need be."""
    found = proportion(float(values.sum()), len(values), _ONE_SIDED)
    return [round(found.lower, 4), round(found.upper, 4)]
