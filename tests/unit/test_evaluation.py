"""The parts of an evaluation by themselves: cells, intervals, corruptions, subset, policies, words. No graph is run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from athe_export.data.shapes import Shapes
from athe_export.evaluation import findings as words
from athe_export.evaluation import intervals
from athe_export.evaluation.answers import Answers
from athe_export.evaluation.cells import Cell, Cells
from athe_export.evaluation.corruptions import ALL, BLUR, NOISE, Corrupted, Corruption
from athe_export.evaluation.energy import Energies
from athe_export.evaluation.intervals import Estimate
from athe_export.evaluation.latency import ROUTED, TimedRow, times_as_fast
from athe_export.evaluation.policies import LEARNED, ORACLE, RANDOM, policies, untrained_policies
from athe_export.evaluation.router import NONE_RIGHT, against_judge, calibration, confusion
from athe_export.evaluation.rows import pareto_front
from athe_export.evaluation.subset import BalancedSubset, balanced_subset, true_class_probability
from athe_export.evaluation.tables import csv_text
from athe_export.parity.reference import Reference
from athe_export.preprocessing import Preprocessing

# --- cells ------------------------------------------------------------------------------------------------------------


def _cells(folder: Path) -> Cells:
    return Cells(folder, "athe-export evaluate x.yaml")


def _never() -> dict[str, Any]:
    raise AssertionError("measured although it was there")


def test_a_cell_is_measured_once_and_read_afterwards(tmp_path: Path) -> None:
    first = _cells(tmp_path).get("answers", {"bundle": "a"}, lambda: {"value": [1, 2.5, None]})
    again = _cells(tmp_path).get("answers", {"bundle": "a"}, _never)
    assert not first.reused and again.reused
    assert (again.content, again.key, again.sha256) == ({"value": [1, 2.5, None]}, first.key, first.sha256)


@pytest.mark.parametrize("kind, depends", [("latency", {"bundle": "a"}), ("answers", {"bundle": "b"}), ("answers", {})])
def test_a_cell_of_anything_else_is_another_cell(tmp_path: Path, kind: str, depends: dict[str, Any]) -> None:
    first = _cells(tmp_path).get("answers", {"bundle": "a"}, lambda: {"value": 1})
    other = _cells(tmp_path).get(kind, depends, lambda: {"value": 2})
    assert other.key != first.key and other.content == {"value": 2}


@pytest.mark.parametrize(
    "damage", [lambda t: t[: len(t) // 2], lambda t: t.replace('"value":1', '"value":7'), lambda t: "[]"]
)
def test_a_damaged_cell_is_measured_again_and_named(tmp_path: Path, damage: Any) -> None:
    first = _cells(tmp_path).get("answers", {}, lambda: {"value": 1})
    (tmp_path / first.file).write_text(damage((tmp_path / first.file).read_text()))
    cells = _cells(tmp_path)
    assert cells.get("answers", {}, lambda: {"value": 2}).content == {"value": 2}
    assert cells.notes == [f"{first.file} was damaged, and is measured again"]


def test_a_cell_that_could_not_be_measured_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _cells(tmp_path / "cells").get("answers", {}, _never)
    assert not (tmp_path / "cells").exists()


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_quantile_of_the_normal_interval_is_that_of_scipy() -> None:
    assert pytest.approx(stats.norm.ppf(0.975), rel=1e-6) == intervals._Z


def test_the_interval_over_runs_is_that_of_scipy() -> None:
    values = [3.0, 4.5, 3.7, 4.1, 3.2]
    found = intervals.mean_of_runs(values)
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.lower, found.upper) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="2 values"):
        intervals.mean_of_runs([1.0])


def test_ratios_are_taken_run_by_run_so_that_drift_cancels() -> None:
    dense = [10.0, 20.0, 40.0]
    found = times_as_fast([5.0, 10.0, 20.0], dense)
    assert (found.value, found.lower, found.upper) == (2.0, 2.0, 2.0)


def test_the_difference_of_a_system_from_itself_is_nought_with_an_interval_around_it() -> None:
    right = np.array([1.0, 0.0, 1.0, 1.0] * 25)
    found = intervals.mean_difference(right, right)
    assert found.value == 0 and found.lower < 0 < found.upper


def test_the_difference_is_positive_where_the_first_system_is_right_more_often() -> None:
    found = intervals.mean_difference(np.ones(200), np.array([0.0] * 50 + [1.0] * 150))
    assert found.value == 0.25 and 0 < found.lower < 0.25 < found.upper
    chance = intervals.mean_difference(np.ones(200), np.full(200, 0.5))
    assert chance.value == 0.5


# --- corruptions ------------------------------------------------------------------------------------------------------

PREPROCESSING = Preprocessing(32, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_there_are_five_strengths_of_both_corruptions_each_worse_than_the_last() -> None:
    image = PREPROCESSING.source(Shapes().image("test", 3))
    assert len(ALL) == 10
    for name in (BLUR, NOISE):
        changed = [np.abs(Corruption(name, s).apply(image, (0, 3)).astype(int) - image).mean() for s in range(1, 6)]
        assert changed[0] > 0 and changed == sorted(changed)


def test_a_corrupted_image_is_the_same_each_time_and_another_for_another_image_seed_or_strength() -> None:
    flat = np.full((32, 32, 3), 128, np.uint8)
    found = [Corruption(NOISE, s).apply(flat, seed) for s, seed in ((1, (0, 1)), (1, (0, 1)), (1, (0, 2)), (1, (5, 1)))]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any() and (found[0] != found[3]).any()
    assert found[0].std() == pytest.approx(255 * 0.04, rel=0.05)


def test_blur_grows_with_the_size_of_the_image() -> None:
    small, large = np.zeros((32, 32, 3), np.uint8), np.zeros((128, 128, 3), np.uint8)
    small[:, :16], large[:, :64] = 255, 255
    grey = [int(((row > 0) & (row < 255)).sum()) for row in (
        Corruption(BLUR, 5).apply(small, ())[16, :, 0], Corruption(BLUR, 5).apply(large, ())[64, :, 0]
    )]  # fmt: skip
    assert grey[1] > 2 * grey[0] > 0


def test_corrupted_images_come_at_source_size_and_pass_preprocessing_unchanged() -> None:
    dataset = Corrupted(Shapes(), Corruption(NOISE, 2), PREPROCESSING, 0)
    image = dataset.image("test", 5)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert (PREPROCESSING.source(image) == image).all()
    assert (dataset.digest, dataset.size("test")) == (Shapes().digest, Shapes().size("test"))


# --- the balanced subset ----------------------------------------------------------------------------------------------


def _reference(images: int = 40) -> Reference:
    """One branch over two classes; image i is the harder the higher i is."""
    logits = np.zeros((1, images, 2), np.float16)
    logits[0, :, 0] = np.linspace(5, -5, images)
    return Reference(np.arange(images), np.zeros(images, np.int64), logits, np.zeros(images, np.float32))


def test_both_halves_are_as_large_and_lie_on_their_side_of_the_middle() -> None:
    found = balanced_subset(_reference(), np.arange(40), 8, 0, "dense")
    assert len(found.simple) == len(found.complex) == 8 and found.pool == 40
    assert found.simple.max() < 20 <= found.complex.min()
    assert set(found.probability) == set(found.ids.tolist())


def test_the_draw_hangs_on_the_seed_alone_and_ties_go_by_id() -> None:
    level = _reference()
    level.logits[:] = 0
    found = balanced_subset(level, np.arange(40), 20, 0, "dense")
    assert found.simple.tolist() == list(range(20)) and found.complex.tolist() == list(range(20, 40))
    draws = [balanced_subset(_reference(), np.arange(40), 8, seed, "dense").ids.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_only_images_that_were_judged_are_drawn_and_fewer_where_there_are_fewer() -> None:
    found = balanced_subset(_reference(), np.arange(30, 100), 500, 0, "dense")
    assert sorted(found.ids.tolist()) == list(range(30, 40))


def test_top1_on_the_subset_estimates_top1_on_all_images_without_a_bias() -> None:
    """Whoever judges: here the judge's own errors, which are all in the harder half."""
    reference, ids = _reference(400), np.arange(400)
    right = reference.correct()[:, 0].astype(float)
    means = [right[balanced_subset(reference, ids, 50, seed, "dense").ids].mean() for seed in range(60)]
    assert np.mean(means) == pytest.approx(right.mean(), abs=0.01)


def test_the_probability_is_the_softmax_of_the_label() -> None:
    found = true_class_probability(_reference(3))
    assert found == pytest.approx(1 / (1 + np.exp([-5, 0, 5])), rel=1e-3)


# --- policies and routers ---------------------------------------------------------------------------------------------


def _answers(correct: list[list[int]], scores: list[float], bounds: tuple[float, ...]) -> Answers:
    """Images of class 0; `correct` is [images][branches]."""
    right = np.array(correct).T
    cell = Cell("answers", "k", "s", "c", "m", {}, {}, "f", False)
    labels = np.zeros(right.shape[1], np.int64)
    return Answers(np.arange(right.shape[1]), labels, 1 - right, np.array(scores, np.float32), bounds, cell)


TWO = _answers([[1, 1], [0, 1], [0, 0], [1, 0], [0, 1], [1, 1]], [0.1, 0.2, 0.9, 0.8, 0.7, 0.3], (0.5,))
THREE = _answers([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], [0.1, 0.5, 0.9, 0.9], (0.3, 0.6))


def _by_name(branches: list[str], answers: Answers) -> dict[str, Any]:
    return {p.name: p for p in policies(branches, answers)}


@pytest.mark.parametrize("branches, answers", [(["a", "b"], TWO), (["a", "b", "c"], THREE)], ids=["two", "three"])
def test_no_policy_beats_the_oracle_and_chance_is_the_mean_of_the_branches_at_the_routers_shares(
    branches: list[str], answers: Answers
) -> None:
    found = _by_name(branches, answers)
    top1 = {name: policy.right(answers).mean() for name, policy in found.items()}
    assert max(top1.values()) == top1[ORACLE] == answers.correct().any(1).mean()
    by_branch = answers.correct().mean(0)
    shares = found[LEARNED].shares
    assert top1[RANDOM] == pytest.approx(sum(shares[b] * by_branch[i] for i, b in enumerate(branches)))
    assert found[RANDOM].shares == pytest.approx(shares)
    assert [top1[f"always {b}"] for b in branches] == pytest.approx(by_branch.tolist())
    assert all(sum(p.shares.values()) == pytest.approx(1) for p in found.values())


def test_the_learned_policy_goes_by_the_systems_own_bounds() -> None:
    found = _by_name(["a", "b"], TWO)[LEARNED]
    assert found.shares == {"a": 0.5, "b": 0.5}
    assert found.right(TWO).tolist() == [1, 0, 0, 0, 1, 1]


def test_the_oracle_takes_the_easiest_branch_that_is_right_and_the_easiest_where_none_is() -> None:
    assert _by_name(["a", "b", "c"], THREE)[ORACLE].chance.argmax(1).tolist() == [0, 1, 2, 0]


def test_only_what_passes_a_router_pays_for_it() -> None:
    assert {name: p.router for name, p in _by_name(["a", "b"], TWO).items()} == {
        LEARNED: True, ORACLE: True, RANDOM: True, "always a": False, "always b": False,
    }  # fmt: skip


def test_nothing_is_said_of_the_answers_of_untrained_weights() -> None:
    found = untrained_policies(["a", "b"], {"a": 0.25, "b": 0.75})
    assert [p.name for p in found] == [LEARNED, "always a", "always b"] and all(p.chance is None for p in found)


def test_every_image_is_in_the_confusion_once() -> None:
    found = confusion(["a", "b"], TWO)
    assert {c["needs"]: (c["images"], c["sent"]) for c in found} == {
        "a": (3, {"a": 2, "b": 1}), "b": (2, {"a": 1, "b": 1}), NONE_RIGHT: (1, {"a": 0, "b": 1}),
    }  # fmt: skip


def test_the_judges_halves_are_counted_by_where_they_were_sent() -> None:
    subset = BalancedSubset(np.array([0, 1]), np.array([2, 5]), {}, "dense", 6)
    found = against_judge(["a", "b"], TWO, subset)
    assert [c["sent"] for c in found] == [{"a": 2, "b": 0}, {"a": 1, "b": 1}]
    assert against_judge(["a", "b"], TWO, None) == []


def test_calibration_groups_ascend_by_score_and_hold_every_image() -> None:
    found = calibration(TWO, bins=3)
    assert [b["images"] for b in found] == [2, 2, 2]
    assert [b["score"] for b in found] == sorted(b["score"] for b in found)
    assert [b["needed"]["value"] for b in found] == [0.5, 0.5, 0.0]


# --- rows and words ---------------------------------------------------------------------------------------------------


def _row(ms: float, top1: float, verdict: str = "pass", deployed: bool = True) -> dict[str, Any]:
    return {"latency_ms": {"value": ms}, "top1": {"value": top1}, "verdict": verdict, "deployed": deployed}


def test_the_front_holds_what_nothing_else_beats_in_both_and_no_system_that_failed_its_gate() -> None:
    rows = [_row(1, 0.5), _row(2, 0.6), _row(3, 0.55), _row(0.5, 0.9, "fail"), _row(0.1, 0.9, deployed=False), _row(1, 0.5)]
    assert pareto_front(rows) == {0, 1, 5}
    assert pareto_front([_row(1, 0.5) | {"top1": None}]) == set()


def _system(**changes: Any) -> dict[str, Any]:
    row = {
        "recipe": "ours", "system": "ours/onnx/int8", "target": "onnx", "precision": "int8", "primary": True,
        "policy": "learned", "deployed": True, "trained": True, "verdict": "pass", "pareto": True, "share_easiest": 0.4,
        "top1": {"value": 0.5, "lower": 0.48, "upper": 0.52}, "latency_ms": {"value": 2.0, "runs": [2.0, 2.0, 2.0]},
        "times_as_fast_as_dense": {"value": 1.5, "lower": 1.4, "upper": 1.6},
        "top1_minus_dense_pp": {"value": 0.1, "lower": -0.5, "upper": 0.7},
        "top1_minus_random_pp": {"value": 1.0, "lower": 0.5, "upper": 1.5},
    }  # fmt: skip
    return row | changes


def _document(own: dict[str, Any]) -> dict[str, Any]:
    dense = _system(recipe="dense", system="dense/onnx/int8", policy="single branch")
    return {
        "systems": [own, _system(policy="oracle", deployed=False), dense], "dense": "dense", "robustness": [], "recipes": [],
        "not_built": [], "quick": False, "machine": {"noise": []}, "images": {},
    }  # fmt: skip


def _against_dense(speed: tuple[float, float], accuracy: tuple[float, float]) -> dict[str, str]:
    ends = [dict(zip(("lower", "upper"), pair, strict=True)) | {"value": sum(pair) / 2} for pair in (speed, accuracy)]
    own = _system(times_as_fast_as_dense=ends[0], top1_minus_dense_pp=ends[1])
    return words.findings(_document(own))[0]


@pytest.mark.parametrize(
    "speed, accuracy, kind",
    [
        ((1.4, 1.6), (-0.5, 0.7), words.WIN),
        ((1.4, 1.6), (0.2, 0.7), words.WIN),
        ((1.4, 1.6), (-0.7, -0.2), words.TRADE),
        ((0.8, 0.9), (0.2, 0.7), words.TRADE),
        ((0.8, 0.9), (-0.5, 0.7), words.LOSS),
        ((0.9, 1.1), (-0.7, -0.2), words.LOSS),
        ((0.9, 1.1), (-0.5, 0.7), words.OPEN),
    ],
)
def test_wins_losses_and_what_is_not_told_apart_are_called_so(
    speed: tuple[float, float], accuracy: tuple[float, float], kind: str
) -> None:
    found = _against_dense(speed, accuracy)
    assert found["kind"] == kind
    assert ("do not tell" in found["text"]) == (speed[0] < 1 < speed[1])
    assert ("not told from 0" in found["text"]) == (accuracy[0] < 0 < accuracy[1])


def test_a_router_no_better_than_chance_is_not_called_better() -> None:
    texts = {f["kind"]: f["text"] for f in words.findings(_document(_system(
        top1_minus_random_pp={"value": 0.3, "lower": -0.2, "upper": 0.8})))}  # fmt: skip
    assert "is not shown" in texts[words.OPEN]


def test_a_quick_evaluation_and_a_missed_gate_are_said() -> None:
    document = _document(_system(verdict="inconclusive"))
    document |= {"quick": True, "images": {"all": {"images": 5}, "robustness": {"images": 2}}}
    recipes = [{"name": "ours", "verdict": "inconclusive", "gate_images": 9}, {"name": "new", "verdict": "not_gated"}]
    document |= {"recipes": [*recipes, {"name": "bad", "verdict": "fail"}]}
    said = "\n".join(f["text"] for f in words.findings(document))
    assert "A quick evaluation" in said and "ours: a gate of 9 images does not decide" in said
    assert "bad did not pass its parity gate (fail)" in said
    assert "new is untrained and was not gated" in said and "gate inconclusive" in said


def test_energy_is_that_of_rows_that_ran_and_a_reason_for_all_others() -> None:
    system: Any = SimpleNamespace(key="ours/onnx/int8")
    found, why = _by_name(["a", "b"], TWO), "no device runs this by itself"
    joules = {
        TimedRow("ours/onnx/int8", ROUTED): Estimate(2.0, 1.5, 2.5),
        TimedRow("ours/onnx/int8", "a"): Estimate(1, 1, 1),
    }
    metered = Energies(joules, not_measured=why)
    assert metered.row_json(system, found[LEARNED])["energy_j"] == {"value": 2.0, "lower": 1.5, "upper": 2.5}
    assert metered.row_json(system, found["always a"])["energy_j"]["value"] == 1
    for name in (ORACLE, RANDOM, "always b"):
        assert metered.row_json(system, found[name]) == {"energy_j": None, "energy_not_measured": why}
    assert "no power log" in Energies().row_json(system, found[LEARNED])["energy_not_measured"]


def test_csv_flattens_nested_fields_and_leaves_nulls_empty() -> None:
    text = csv_text([{"a": 1, "b": {"c": 2.5, "runs": [1, 2]}}, {"a": None, "b": None}])
    found = list(csv.DictReader(io.StringIO(text)))
    assert found == [{"a": "1", "b.c": "2.5", "b.runs": "1 2"}, {"a": "", "b.c": "", "b.runs": ""}]
    assert json.dumps(found)
