"""Verdicts: what decides a limit, what would, and how often the gate errs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from athe_export.parity.limits import (
    FAIL,
    INCONCLUSIVE,
    MOST_DB,
    PASS,
    Counts,
    GateLimits,
    LimitResult,
    Rules,
    branch_limits,
    noise_limit,
    router_limit,
    whole_limits,
    worst,
)
from athe_export.parity.statistics import ratio_of_sums

DEFAULT = GateLimits(max_top1_drop_pp=0.7, min_agreement=0.97, min_router_agreement=0.99, confidence=0.95)
BRANCHES = 2
DRAWS = 2000  # of a simulation: a rate of 5% is then met within 1.5% at three deviations


def rules(targets: int = 1) -> Rules:
    """Of the default limits, for systems of two branches and a router."""
    return Rules(DEFAULT, targets * (3 + 2 * BRANCHES))


def scaled(counts: Counts, images: int) -> Counts:
    """The same shares on other images."""
    return Counts(images, *(round(x * images / counts.images) for x in (counts.lost, counts.won, counts.same)))


def test_default_limits_are_undecided_on_300_images_and_say_how_many_they_need() -> None:
    """One image in fifty answered otherwise, as a good int8 system does: no fault, and yet no proof."""
    counts = Counts(images=300, lost=2, won=2, same=294)
    drop, agreement = whole_limits("onnx", counts, rules())
    router = router_limit("onnx", 299, 300, rules())
    for limit in (drop, agreement, router):
        assert limit.verdict == INCONCLUSIVE
        assert limit.images == 300 < (limit.images_needed or 0) < 10_000
        assert f"about {limit.images_needed:,} would decide" in limit.said()
        assert "300 images leave" in limit.said()


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [(Counts(300, 2, 2, 294), PASS), (Counts(300, 8, 1, 290), FAIL), (Counts(1000, 4, 0, 985), PASS)],
)
def test_the_images_needed_decide_if_the_shares_stay(counts: Counts, verdict: str) -> None:
    drop = whole_limits("onnx", counts, rules())[0]
    assert drop.verdict == INCONCLUSIVE and drop.images_needed is not None
    assert whole_limits("onnx", scaled(counts, 2 * drop.images_needed), rules())[0].verdict == verdict
    assert whole_limits("onnx", scaled(counts, drop.images_needed * 9 // 10), rules())[0].verdict == INCONCLUSIVE


def test_a_decided_limit_needs_no_more_images() -> None:
    counts = Counts(10_000, 100, 95, 9780)
    for limit in whole_limits("onnx", counts, rules()):
        assert (limit.verdict, limit.images_needed) == (PASS, None)
        assert limit.lower is not None and limit.upper is not None and limit.lower < limit.upper


def test_an_estimate_on_the_limit_itself_is_decided_by_no_number_of_images() -> None:
    agreement = whole_limits("onnx", Counts(1000, 0, 0, 970), rules())[1]
    assert (agreement.verdict, agreement.images_needed) == (INCONCLUSIVE, None)
    assert "if it stays at 0.97, no number would decide" in agreement.said()


def test_a_pass_stands_on_the_recipes_confidence_and_a_fail_on_a_stricter_one() -> None:
    counts = Counts(10_000, 160, 60, 9700)
    one, both = whole_limits("onnx", counts, rules(1))[0], whole_limits("onnx", counts, rules(2))[0]
    assert one.upper == both.upper == one.value
    assert both.lower is not None and one.lower is not None and both.lower < one.lower
    assert rules(2).fail_confidence == pytest.approx(1 - 0.05 / 14)


def test_a_branch_without_images_is_undecided_and_says_why() -> None:
    (limit,) = branch_limits("onnx.complex", Counts(0, 0, 0, 0), rules())
    assert (limit.verdict, limit.images, limit.lower) == (INCONCLUSIVE, 0, None)
    assert "no image was routed to it" in limit.said()


def verdict_rates(images: int, lost: float, won: float, other: float, flips: float, targets: int) -> dict[str, float]:
    """Verdicts of the whole gate over draws of systems whose images are each lost, won, otherwise changed or rerouted with
    these chances. Both branches are used, the easier one by 60%."""
    random = np.random.RandomState(0)
    chances = [lost, won, other, 1 - lost - won - other]
    systems = DRAWS * targets
    simple = random.binomial(images, 0.6, systems)
    cells = np.stack([[random.multinomial(n, chances) for n in sizes] for sizes in (simple, images - simple)])
    flipped, held = random.binomial(images, flips, systems), rules(targets)
    verdicts = []
    for draw in range(systems):
        parts = [Counts(int(c.sum()), int(c[0]), int(c[1]), int(c[3])) for c in cells[:, draw]]
        whole = Counts(images, *(int(cells[:, draw, i].sum()) for i in (0, 1, 3)))
        rows = [*whole_limits("t", whole, held), router_limit("t", images - int(flipped[draw]), images, held)]
        rows += [row for part in parts for row in branch_limits("t.b", part, held)]
        verdicts.append(worst(row.verdict for row in rows))
    gates = [worst(verdicts[i : i + targets]) for i in range(0, systems, targets)]
    return {verdict: gates.count(verdict) / DRAWS for verdict in (PASS, INCONCLUSIVE, FAIL)}


@pytest.mark.parametrize("images", [300, 1000, 10_000])
@pytest.mark.parametrize("discordant", [0.004, 0.02])
@pytest.mark.parametrize("targets", [1, 2])
def test_without_a_true_drop_at_most_one_gate_in_twenty_fails(images: int, discordant: float, targets: int) -> None:
    """Of the whole gate: all limits of all targets and branches together."""
    rates = verdict_rates(images, discordant / 2, discordant / 2, 0.003, 0.003, targets)
    assert rates[FAIL] <= 0.05


@pytest.mark.parametrize("images", [300, 1000, 10_000])
@pytest.mark.parametrize("won", [0.0, 0.002, 0.01])
def test_at_twice_the_allowed_drop_at_most_one_gate_in_twenty_passes(images: int, won: float) -> None:
    allowed = DEFAULT.max_top1_drop_pp / 100
    rates = verdict_rates(images, won + 2 * allowed, won, 0.0, 0.0, 1)
    assert rates[PASS] <= 0.05


def test_a_gate_of_10000_images_decides() -> None:
    """At the figures that are asked of a good system; and it is no stamp: at twice the drop it fails."""
    sound, broken = (verdict_rates(10_000, 0.008 + d, 0.008, 0.003, 0.003, 2) for d in (0.0, 0.014))
    assert sound[PASS] > 0.95
    assert broken[FAIL] > 0.95


def _noisy(images: int, decibels: float, limit: float | None) -> list[LimitResult]:
    random = np.random.RandomState(0)
    signal = random.randn(images, 100)
    noise = random.randn(images, 100) * 10 ** (-decibels / 20)
    return noise_limit("onnx.simple", signal, signal + noise, Rules(dataclasses.replace(DEFAULT, min_sqnr_db=limit), 9))


@pytest.mark.parametrize(("decibels", "verdict"), [(30, PASS), (20.5, PASS), (19.0, FAIL), (5, FAIL)])
def test_a_branch_fails_where_its_logits_are_surely_noisier_than_allowed(decibels: float, verdict: str) -> None:
    (limit,) = _noisy(400, decibels, 20)
    assert (limit.name, limit.limit, limit.verdict) == ("onnx.simple.min_sqnr_db", 20, verdict)
    assert limit.measured == pytest.approx(decibels, abs=0.2)
    assert limit.lower is not None and limit.upper is not None and limit.measured is not None
    assert limit.lower < limit.measured < limit.upper == limit.value


def test_logits_that_do_not_differ_are_as_far_above_noise_as_can_be_said() -> None:
    logits = np.random.RandomState(0).randn(50, 100)
    (limit,) = noise_limit("onnx.simple", logits, logits, Rules(dataclasses.replace(DEFAULT, min_sqnr_db=20), 9))
    assert (limit.verdict, limit.value, limit.lower) == (PASS, MOST_DB, MOST_DB)


def test_without_a_limit_on_noise_or_without_images_nothing_is_said_of_it() -> None:
    assert _noisy(100, 3, None) == [] and _noisy(0, 3, 20) == []


def test_the_bounds_of_a_ratio_hold_as_often_as_they_say() -> None:
    """Noise whose power varies from image to image, and with the signal's."""
    random, beyond = np.random.RandomState(0), 0
    for _ in range(DRAWS):
        power = random.gamma(4, size=200)
        found = ratio_of_sums(power * random.gamma(2, 0.005, size=200), power, 0.95)
        beyond += found.upper < 0.01
    assert 0.035 < beyond / DRAWS < 0.075  # a skewed sample: a little over the 5% of a normal one
