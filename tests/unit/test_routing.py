"""Routing: from scores to branches, and fitting the bounds in between."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.runtime.routing import (
    RouterPolicy,
    difficulty_target,
    gain_target,
    match_policy,
    policy_for_drop,
    policy_for_share,
)

Scores = npt.NDArray[np.float32]
KINDS = ("spread", "tied", "saturated", "neighbours")


def draw_scores(kind: str, random: np.random.RandomState, count: int) -> Scores:
    """Scores as a sigmoid may give them; all but the first kind hold equal or hardly different ones."""
    spread = random.rand(count).astype(np.float32)
    if kind == "tied":
        return np.round(spread * 8) / np.float32(8)
    if kind == "saturated":
        return np.clip(spread * 3 - 1, 0, 1).astype(np.float32)
    if kind == "neighbours":  # float32 values next to each other, so that nothing lies between them
        return np.float32(0.75) + random.randint(0, 6, count).astype(np.float32) * np.spacing(np.float32(0.75))
    return spread


def draw_correct(random: np.random.RandomState, scores: Scores, branches: int) -> npt.NDArray[np.bool_]:
    """Whether each branch is right: the easier ones the less, the higher the score."""
    easiest = 0.85 - 0.5 * scores
    chance = np.stack([easiest + (0.85 - easiest) * b / (branches - 1) for b in range(branches)], 1)
    return random.rand(len(scores), branches) < chance


def top1(policy: RouterPolicy, scores: Scores, correct: npt.NDArray[np.bool_]) -> int:
    """Images that the routed system has right."""
    return int(correct[np.arange(len(scores)), policy.branches_of(scores)].sum())


@pytest.mark.parametrize("bounds", [(), (0.5,), (0.2, 0.2), (0.1, 0.4, 0.9), (-1.0, 1.0)])
def test_a_higher_score_never_goes_to_an_easier_branch(bounds: tuple[float, ...]) -> None:
    scores = np.sort(np.random.RandomState(0).rand(500).astype(np.float32))
    found = RouterPolicy(bounds).branches_of(scores)
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 0
    assert found.max() <= len(bounds)


def test_one_image_is_routed_as_in_a_batch() -> None:
    policy, scores = RouterPolicy((0.1, 0.4)), np.random.RandomState(0).rand(200).astype(np.float32)
    assert [policy.branch_of(float(s)) for s in scores] == policy.branches_of(scores).tolist()


def test_a_score_at_a_bound_goes_to_the_easier_branch_and_the_next_float_does_not() -> None:
    bound = np.float32(0.3)
    policy = RouterPolicy((float(bound),))
    assert policy.branch_of(float(bound)) == 0
    assert policy.branch_of(float(np.nextafter(bound, np.float32(1)))) == 1


def test_a_score_that_is_not_a_number_goes_to_the_hardest_branch() -> None:
    assert RouterPolicy((0.2, 0.6)).branch_of(float("nan")) == 2


def test_bounds_survive_json() -> None:
    scores = np.random.RandomState(0).rand(400).astype(np.float32)
    policy = policy_for_share(scores, 0.3, 3)
    again = RouterPolicy(tuple(json.loads(json.dumps(policy.bounds))))
    assert np.array_equal(again.branches_of(scores), policy.branches_of(scores))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_drop_pp", [0, 0.5, 3, 100])
def test_max_drop_never_loses_more_than_its_budget_on_its_own_images(
    seed: int, branches: int, kind: str, max_drop_pp: float
) -> None:
    random = np.random.RandomState(seed)
    for count in (7, 60, 400):
        scores = draw_scores(kind, random, count)
        correct = draw_correct(random, scores, branches)
        policy = policy_for_drop(scores, correct, max_drop_pp)
        assert len(policy.bounds) == branches - 1
        assert list(policy.bounds) == sorted(policy.bounds)
        lost = int(correct[:, -1].sum()) - top1(policy, scores, correct)
        assert lost <= max_drop_pp / 100 * count


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_drop_pp", [0, 2, 10])
def test_max_drop_of_two_branches_sends_the_most_images_that_any_bound_could(
    seed: int, kind: str, max_drop_pp: float
) -> None:
    random = np.random.RandomState(seed)
    scores = draw_scores(kind, random, 80)
    correct = draw_correct(random, scores, 2)
    allowed = correct[:, 1].sum() - max_drop_pp / 100 * len(scores)
    candidates = [RouterPolicy((float(b),)) for b in (-1.0, *np.unique(scores))]
    best = max(int((p.branches_of(scores) == 0).sum()) for p in candidates if top1(p, scores, correct) >= allowed)
    found = policy_for_drop(scores, correct, max_drop_pp)
    assert int((found.branches_of(scores) == 0).sum()) == best


def test_max_drop_sends_everything_to_an_easiest_branch_that_is_never_worse() -> None:
    scores = np.random.RandomState(0).rand(50).astype(np.float32)
    policy = policy_for_drop(scores, np.ones((50, 2), bool), 0)
    assert (policy.branches_of(scores) == 0).all()
    assert policy.branch_of(1.0) == 0


@pytest.mark.parametrize("least", [0.0, 0.25])
def test_max_drop_sends_nothing_to_an_easiest_branch_that_is_always_worse(least: float) -> None:
    """Also where scores reach 0, the least that there is."""
    scores = np.linspace(least, 1, 50, dtype=np.float32)
    correct = np.stack([np.zeros(50, bool), np.ones(50, bool)], 1)
    assert (policy_for_drop(scores, correct, 0.5).branches_of(scores) == 1).all()


def test_max_drop_never_parts_equal_scores_to_stay_in_its_budget() -> None:
    """Losing one, then winning two back at the same score: the group goes to the easiest branch whole or not at all."""
    scores = np.array([0.1, 0.5, 0.5, 0.5, 0.9], np.float32)
    easy = np.array([1, 0, 0, 1, 0], bool)
    hard = np.array([1, 1, 1, 0, 1], bool)
    policy = policy_for_drop(scores, np.stack([easy, hard], 1), 20)  # one image of five
    assert policy.branches_of(scores).tolist() == [0, 0, 0, 0, 1]
    assert policy_for_drop(scores, np.stack([easy, hard], 1), 0).branches_of(scores).tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("count", [2, 9, 100, 1001])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_share_simple_sends_that_share_of_distinct_scores(count: int, share: float) -> None:
    scores = np.random.RandomState(count).permutation(np.linspace(0, 1, count)).astype(np.float32)
    found = policy_for_share(scores, share, 2).branches_of(scores)
    assert (found == 0).sum() == round(share * count)


@pytest.mark.parametrize("branches", [3, 4])
def test_share_simple_parts_the_rest_equally(branches: int) -> None:
    scores = np.random.RandomState(1).rand(1200).astype(np.float32)
    counts = np.bincount(policy_for_share(scores, 0.4, branches).branches_of(scores), minlength=branches)
    assert counts[0] == 480
    assert np.ptp(counts[1:]) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branches", [2, 3])
def test_share_simple_with_equal_scores_sends_at_most_that_share_and_as_much_as_fits(kind: str, branches: int) -> None:
    scores = draw_scores(kind, np.random.RandomState(2), 200)
    found = policy_for_share(scores, 0.5, branches).branches_of(scores)
    fitting = [int((scores <= s).sum()) for s in np.unique(scores)]
    assert (found == 0).sum() == max([f for f in fitting if f <= 100], default=0)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_scores_that_are_all_equal_are_hard(value: float) -> None:
    scores = np.full(20, value, np.float32)
    assert (policy_for_share(scores, 0.5, 2).branches_of(scores) == 1).all()


def test_the_router_learns_which_branch_is_enough() -> None:
    correct = np.array(
        [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]], bool
    )  # where none is right the easiest is as good as any
    target = difficulty_target(correct)
    assert target.dtype == np.float32
    assert target.tolist() == [0, 0.5, 1, 0, 0.5, 0]
    assert difficulty_target(correct[:, 1:]).tolist() == [0, 0, 1, 0, 0, 0]
    assert difficulty_target(correct[:, :1]).tolist() == [0] * 6


def test_bounds_fitted_on_the_learnt_target_lose_nothing() -> None:
    """A perfect router: scores equal to the target route every image to the first branch that is right."""
    correct = np.random.RandomState(3).rand(300, 3) < (0.5, 0.7, 0.9)
    scores = difficulty_target(correct)
    policy = RouterPolicy((0.25, 0.75))
    assert top1(policy, scores, correct) == int(correct.any(1).sum())


# another engine's scores


def elsewhere(policy: RouterPolicy, scores: Scores, positions: npt.NDArray[np.int64]) -> int:
    """Images that a policy sends to another branch than they were sent to."""
    return int((policy.branches_of(scores) != positions).sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("branches", [2, 3, 4])
@pytest.mark.parametrize(
    "engine",
    [lambda s: s, lambda s: 0.5 * s + 0.2, lambda s: s**3, lambda s: 1 / (1 + np.exp(4 - 9 * s))],
    ids=["the same", "shifted and narrower", "bent", "squashed"],
)
def test_scores_in_the_same_order_are_routed_as_the_reference_routes(
    seed: int, branches: int, engine: Callable[[Scores], Scores]
) -> None:
    scores = np.random.RandomState(seed).permutation(np.linspace(0.02, 0.98, 150)).astype(np.float32)
    reference = policy_for_share(scores, 0.4, branches).branches_of(scores)
    found = match_policy(engine(scores).astype(np.float32), reference, branches)
    assert elsewhere(found, engine(scores).astype(np.float32), reference) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branches", [2, 3])
def test_no_other_bounds_send_fewer_images_elsewhere(kind: str, branches: int) -> None:
    """Against every choice of ascending bounds, on cases small enough to try them all."""
    for seed in range(40):
        random = np.random.RandomState(seed)
        scores = draw_scores(kind, random, 9)
        positions = np.minimum(np.round(scores * branches + random.randn(9) * 0.4), branches - 1).clip(0).astype(np.int64)
        cuts = [-1.0, *map(float, np.unique(scores))]
        every = itertools.combinations_with_replacement(cuts, branches - 1)
        least = min(elsewhere(RouterPolicy(bounds), scores, positions) for bounds in every)
        found = match_policy(scores, positions, branches)
        assert len(found.bounds) == branches - 1
        assert list(found.bounds) == sorted(found.bounds)
        assert elsewhere(found, scores, positions) == least, f"seed {seed}"


@pytest.mark.parametrize("branches", [2, 3, 5])
def test_matched_bounds_ascend_whatever_the_scores_say(branches: int) -> None:
    for seed in range(30):
        random = np.random.RandomState(seed)
        positions = random.randint(0, branches, 60)  # that have nothing to do with the scores
        bounds = match_policy(draw_scores("tied", random, 60), positions, branches).bounds
        assert len(bounds) == branches - 1 and list(bounds) == sorted(bounds)


@pytest.mark.parametrize(("position", "branches"), [(0, 2), (1, 2), (1, 3), (2, 3)])
def test_where_all_images_went_one_way_they_go_that_way(position: int, branches: int) -> None:
    for scores in (np.linspace(0, 1, 20, dtype=np.float32), np.full(20, 0.5, np.float32)):
        positions = np.full(20, position)
        assert elsewhere(match_policy(scores, positions, branches), scores, positions) == 0


def test_coarse_scores_part_the_images_where_most_go_as_before() -> None:
    """An int8 router gives a few values; images of one value cannot be parted."""
    scores = np.repeat(np.array([0.25, 0.5, 0.75], np.float32), [10, 10, 10])
    positions = np.repeat([0, 0, 1, 1], [10, 4, 6, 10])
    assert match_policy(scores, positions, 2).branches_of(scores).tolist() == [0] * 10 + [1] * 20


def test_the_gain_is_half_where_branches_are_alike_and_grows_with_what_the_hardest_is_surer() -> None:
    sure = np.array([[0.3, 0.9, 0.3], [0.2, 0.0, 0.6], [0.9, 0.0, 0.1], [0, 0, 1], [1, 0, 0]], np.float32)
    target = gain_target(sure)
    assert target.dtype == np.float32
    np.testing.assert_allclose(target, [0.5, 0.7, 0.1, 1, 0], atol=1e-6)


def test_routing_by_the_expected_gain_loses_least_at_every_share() -> None:
    """Chances of two branches to be right differ from image to image: an order by their difference is the best there is."""
    random = np.random.RandomState(0)
    easy, hard = random.rand(2, 4000).astype(np.float32)
    best, other = (np.argsort(score) for score in (gain_target(np.stack([easy, hard], 1)), 1 - easy))
    for share in (400, 1200, 2000, 2800):
        right = [easy[order[:share]].sum() + hard[order[share:]].sum() for order in (best, other)]
        assert right[0] > right[1]
