"""From the router's difficulty score to a branch, and fitting the thresholds in between. numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]


class RouterPolicy(NamedTuple):
    """Ascending bounds, one fewer than branches: an image whose score is at most bounds[i] goes to branch i or easier."""

    bounds: tuple[float, ...]

    def branch_of(self, score: float) -> int:
        """Position of the branch, 0 the easiest."""
        return int(np.searchsorted(np.asarray(self.bounds, np.float32), np.float32(score), side="left"))

    def branches_of(self, scores: Scores) -> npt.NDArray[np.int64]:
        """`branch_of` for scores float32 [n]."""
        return np.searchsorted(np.asarray(self.bounds, np.float32), scores.astype(np.float32), side="left").astype(np.int64)


def fit_policy(
    branches: int,
    scores: Scores,
    correct: npt.NDArray[np.bool_],
    *,
    fixed: tuple[float, ...] | None = None,
    max_drop_pp: float | None = None,
    share_simple: float | None = None,
) -> RouterPolicy:
    """The policy of a recipe's threshold, of which one form is given.

    Args:
        branches: how many there are.
        scores: difficulty, float32 [n]; read by all forms but `fixed`.
        correct: whether each branch is right, bool [n, branches]; read by `max_drop_pp` alone.
    """
    if fixed is not None:
        return RouterPolicy(fixed)
    if share_simple is not None:
        return policy_for_share(scores, share_simple, branches)
    assert max_drop_pp is not None
    return policy_for_drop(scores, correct, max_drop_pp)


def policy_for_share(scores: Scores, share_simple: float, branches: int) -> RouterPolicy:
    """Sends `share_simple` of these scores to the easiest branch and the rest to the others in equal parts."""
    rest = (1 - share_simple) / (branches - 1)
    counts = [round(min(1.0, share_simple + i * rest) * len(scores)) for i in range(branches - 1)]
    ranked = np.sort(scores)
    return RouterPolicy(tuple(_bound_after(ranked, count) for count in counts))


def policy_for_drop(scores: Scores, correct: npt.NDArray[np.bool_], max_drop_pp: float) -> RouterPolicy:
    """The most images on the easiest branches at a bounded loss of top-1.

    Bound by bound, easiest branch first, each may spend an equal part of `max_drop_pp`: the largest score is taken up
    to which the branch, in place of the hardest one, loses no more than that.

    Args:
        scores: difficulty, float32 [n].
        correct: whether each branch is right, bool [n, branches], easiest first.
        max_drop_pp: percentage points of all n images.
    """
    order = np.argsort(scores, kind="stable")
    ranked, right = scores[order], correct[order].astype(np.int64)
    parts = np.concatenate([[True], np.diff(ranked) > 0, [True]])  # no bound can part equal scores
    allowed = max_drop_pp / 100 * len(scores) / (correct.shape[1] - 1)
    bounds: list[float] = []
    start = 0
    for branch in range(correct.shape[1] - 1):
        lost = np.concatenate([[0], np.cumsum(right[start:, -1] - right[start:, branch])])
        taken = int(np.flatnonzero((lost <= allowed) & parts[start:]).max())
        start += taken
        bounds.append(_bound_after(ranked, start))
    return RouterPolicy(tuple(bounds))


def match_policy(scores: Scores, positions: npt.NDArray[np.int64], branches: int) -> RouterPolicy:
    """The policy on another engine's scores that sends the fewest images elsewhere than `positions` does.

    An int8 router's scores are shifted and coarse, so the fp32 router's bounds would part images at other places. The
    sorted scores are cut into one run a branch by dynamic programming: least[j] is the smallest number misrouted among
    the first j, if the branches so far end there.

    Args:
        scores: that engine's difficulty, float32 [n].
        positions: branch of each image by the reference, int64 [n].
    """
    order = np.argsort(scores, kind="stable")
    ranked, count = scores[order], len(scores)
    cuttable = np.concatenate([[True], np.diff(ranked) > 0, [True]])  # no bound can part equal scores
    least = np.where(np.arange(count + 1) == 0, 0, count + 1)
    starts: list[npt.NDArray[np.int64]] = []
    for branch in range(branches):
        wrong = np.concatenate([[0], np.cumsum(positions[order] != branch)])
        best = np.minimum.accumulate(least - wrong)
        reached = np.concatenate([[True], np.diff(best) < 0])  # where the minimum so far was attained
        starts.append(np.maximum.accumulate(np.where(reached, np.arange(count + 1), 0)))
        least = np.where(cuttable, wrong + best, 2 * count + 2)
    cuts, end = [], count
    for start in reversed(starts[1:]):
        end = int(start[end])
        cuts.append(end)
    return RouterPolicy(tuple(_bound_after(ranked, cut) for cut in reversed(cuts)))


def _bound_after(ranked: Scores, count: int) -> float:
    """A bound that `count` of the ascending scores do not exceed; where it would part equal ones, fewer."""
    if count == len(ranked):
        return 1.0
    high = ranked[count]
    easier = ranked[:count][ranked[:count] < high]
    if not len(easier):
        return 0.0 if high > 0 else -1.0
    middle = np.float32((float(easier[-1]) + float(high)) / 2)
    return float(middle if middle < high else easier[-1])  # between neighbouring floats there is none


def gain_target(sure: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the router learns from probabilities: how much surer the hardest branch is than the easiest, float32 [n].

    1 where only the hardest is sure, 0 where only the easiest is, 0.5 where it makes no difference.

    Images in order of its expectation are images in order of what a harder branch is worth for them, which is the order
    that a bound cuts best; and a probability says more of an image than whether an answer happened to be right.

    Args:
        sure: each branch's probability of the image's label, easiest first, float32 [n, branches].
    """
    return (0.5 + 0.5 * (sure[:, -1] - sure[:, 0])).astype(np.float32)


def difficulty_target(correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """What the router learns: 0 where the easiest branch is enough, 1 where only the hardest will do, float32 [n].

    A branch is enough if it is right; where none is right the easiest is as good as any.
    """
    first = np.where(correct.any(1), correct.argmax(1), 0)
    return (first / max(1, correct.shape[1] - 1)).astype(np.float32)
