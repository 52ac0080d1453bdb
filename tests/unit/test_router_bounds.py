"""Accuracy against cost over a router's bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.bundle.manifest import FrontierPoint
from athe_export.pipeline import prepare
from athe_export.recipe import load_recipe
from athe_export.router_bounds import FRONTIER_POINTS, broken_promise, frontier
from athe_export.runtime.routing import RouterPolicy, Scores, policy_for_share
from athe_export.stages import StageTimer
from tests.conftest import TINY, SilentWatch

MMACS = (5.0, 20.0)


def images(count: int = 800, branches: int = 2) -> tuple[Scores, npt.NDArray[np.bool_]]:
    """Scores and which branches are right: the easier ones the less, the higher the score."""
    random = np.random.RandomState(0)
    scores = random.rand(count).astype(np.float32)
    chance = 0.9 - scores[:, None] * np.linspace(0.6, 0.1, branches)
    return scores, random.rand(count, branches) < chance


def test_the_frontier_goes_from_no_image_on_the_easiest_branch_to_all() -> None:
    scores, correct = images()
    points = frontier(scores, correct, MMACS, RouterPolicy((0.3,)))
    assert (points[0].share, points[-1].share) == ((0, 1), (1, 0))
    assert (points[0].mmacs, points[-1].mmacs) == (20, 5)
    assert points[0].top1 == pytest.approx(correct[:, 1].mean(), abs=1e-6)
    assert points[-1].top1 == pytest.approx(correct[:, 0].mean(), abs=1e-6)
    assert len(points) == FRONTIER_POINTS + 2
    assert np.all(np.diff([p.share[0] for p in points]) > 0) and np.all(np.diff([p.mmacs for p in points]) < 0)


def test_every_point_is_what_its_bounds_do_to_the_images() -> None:
    scores, correct = images()
    for point in frontier(scores, correct, MMACS, RouterPolicy((0.3,))):
        routed = RouterPolicy(point.bounds).branches_of(scores)
        assert point.share[0] == pytest.approx((routed == 0).mean(), abs=1e-6)
        assert point.top1 == pytest.approx(correct[np.arange(len(scores)), routed].mean(), abs=1e-6)
        assert point.mmacs == pytest.approx(np.mean(np.where(routed == 0, *MMACS)), abs=1e-3)


@pytest.mark.parametrize("bound", [-1.0, 0.0, 0.3, 1.0])
def test_the_bounds_in_use_are_one_point_and_the_only_one_at_its_share(bound: float) -> None:
    points = frontier(*images(), MMACS, RouterPolicy((bound,)))
    (chosen,) = [p for p in points if p.chosen]
    assert chosen.bounds == (bound,)
    assert len({p.share for p in points}) == len(points)


def test_coarse_scores_have_no_more_points_than_there_are_places_to_part_them() -> None:
    scores, correct = images()
    points = frontier(np.round(scores * 4).astype(np.float32) / 4, correct, MMACS, RouterPolicy((0.6,)))
    assert len(points) <= 6


def test_three_branches_have_a_frontier_with_ascending_bounds() -> None:
    scores, correct = images(branches=3)
    chosen = policy_for_share(scores, 0.5, 3)
    points = frontier(scores, correct, (5.0, 10.0, 20.0), chosen)
    assert all(isinstance(p, FrontierPoint) and list(p.bounds) == sorted(p.bounds) for p in points)
    assert all(sum(p.share) == pytest.approx(1, abs=1e-5) for p in points)
    assert [p.bounds for p in points if p.chosen] == [chosen.bounds]


@pytest.mark.parametrize(
    ("bound", "allowed", "said"), [(1.0, 0.5, True), (0.0, 0.5, False), (1.0, 60.0, False), (1.0, None, False)]
)
def test_a_router_that_surely_loses_more_than_the_recipe_allows_is_named(
    bound: float, allowed: float | None, said: bool
) -> None:
    scores, correct = images()
    notes = broken_promise("litert", scores, correct, RouterPolicy((bound,)), allowed)
    assert bool(notes) == said
    if said:
        lost = 100 * (correct[:, 1].mean() - correct[:, 0].mean())
        assert f"{lost:.2f} pp" in notes[0] and "allows 0.5" in notes[0] and notes[0].startswith("litert")


def test_a_loss_that_chance_may_have_made_is_no_broken_promise() -> None:
    """11 images of 1,000 lost where 10 may be: nobody can tell."""
    correct = np.ones((1000, 2), bool)
    correct[:11, 0] = False
    scores = np.zeros(1000, np.float32)
    assert broken_promise("litert", scores, correct, RouterPolicy((1.0,)), 1.0) == []


def test_a_threshold_is_fitted_on_as_many_held_out_images_as_the_recipe_says(tiny: Callable[..., Path]) -> None:
    router = TINY["router"] | {"threshold": {"max_drop_pp": 1}, "fit_images": 40}
    found = prepare(load_recipe(tiny(router=router)), None, None, StageTimer(SilentWatch())).routing
    assert (found.split, found.ids) == ("holdout", tuple(range(40)))
