"""Sensitivity of layers and automatic precision, on tiny real graphs of both targets in which one layer bears int8 badly."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from athe_export.branches import BranchGraphSource, build_branch
from athe_export.calibrators import Job
from athe_export.data.shapes import Shapes
from athe_export.data.source import no_progress
from athe_export.errors import ExportError
from athe_export.layer_precision import AnySpec, subject_of
from athe_export.model.athe import AtheModel
from athe_export.parity.limits import FAIL, INCONCLUSIVE, PASS
from athe_export.parity.statistics import paired_difference
from athe_export.precision.latency import Pair, slowdown
from athe_export.precision.search import EXHAUSTED, INTERRUPTED, MET, MINUTES, Found, search
from athe_export.precision.sensitivity import BranchSensitivity, Sensitivity, groups_of, measure, rank
from athe_export.precision.subject import LEAST_DB, Clock, Distance, Subject, distance
from athe_export.precision.trial import Bench, Limits
from athe_export.preprocessing import Preprocessing, Tensor
from athe_export.recipe import LitertQuantizeSpec, OnnxQuantizeSpec, load_recipe
from athe_export.runtime.engines import ENGINES, Session
from athe_export.targets.litert.export import export as litert_export
from athe_export.targets.litert.graph import LitertGraph
from athe_export.targets.litert.quantize import quantize as litert_quantize
from athe_export.targets.onnx.export import export as onnx_export
from athe_export.targets.onnx.graph import OnnxGraph
from athe_export.targets.onnx.quantize import quantize as onnx_quantize
from athe_export.targets.onnx.simplify import simplify

Graph = OnnxGraph | LitertGraph
PLANTED = "blocks.1.mlp.fc2"
BLOCKS = [f"blocks.{b}.{name}" for b in range(3) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
LIMITS = Limits(max_top1_drop_pp=45, max_slowdown=100, confidence=0.95)
SPECS: dict[str, AnySpec] = {"onnx": OnnxQuantizeSpec(), "litert": LitertQuantizeSpec()}
both = pytest.mark.parametrize("target", ["onnx", "litert"])


def images_of(split: str, count: int) -> list[Tensor]:
    preprocessing, shapes = Preprocessing(32, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), Shapes()
    return [preprocessing.tensor(preprocessing.source(shapes.image(split, i)), 32) for i in range(count)]


HELD_OUT, CALIBRATION = images_of("holdout", 60), images_of("train", 32)


@pytest.fixture(scope="module")
def source(tiny_inputs: Path) -> BranchGraphSource:
    """A branch whose layer PLANTED has a column of weights that no input ever meets, so large that int8 sees little else.

    The head's bias is shifted so that random weights do not answer every image alike.
    """
    recipe = load_recipe(tiny_inputs / "recipe.yaml").recipe
    model = AtheModel(recipe)
    model.initialise(7)
    mlp = model.backbone.blocks[1].mlp
    with torch.no_grad():
        mlp.fc1.weight[0], mlp.fc1.bias[0] = 0.0, -6.0  # GELU makes nothing of it
        mlp.fc2.weight[:, 0] = 100.0
    made = build_branch(model.eval(), recipe.branches[1])
    with torch.no_grad():
        made.module.head.bias.sub_(torch.cat([made.module(torch.from_numpy(x)) for x in HELD_OUT]).mean(0))
    return made


@pytest.fixture(scope="module")
def graphs(source: BranchGraphSource) -> Callable[[str], Graph]:
    """A target's fp32 graph of it, exported when it is first asked for."""
    made: dict[str, Graph] = {}

    def get(target: str) -> Graph:
        if target not in made:
            export = {
                "onnx": lambda: simplify(onnx_export(source, 20, HELD_OUT[:2])),
                "litert": lambda: litert_export(source, HELD_OUT[:2]),
            }
            made[target] = export[target]()
        return made[target]

    return get


def judged(graph: Graph, spec: AnySpec, role: str = "complex", count: int = 60) -> Subject:
    """The graph as a subject whose labels are what fp32 answers, so that every answer that changes is an image lost."""
    target, images = "onnx" if isinstance(graph, OnnxGraph) else "litert", HELD_OUT[:count]
    fp32 = ENGINES[target](graph.content)
    labels = np.array([fp32.run(image).argmax() for image in images])
    assert len(set(labels)) > 10
    quantize = partial(onnx_quantize if target == "onnx" else litert_quantize, graph)
    return subject_of(Job(target, role, 32, graph, quantize, lambda: CALIBRATION), spec, lambda: images, labels)


@pytest.fixture(scope="module")
def subjects(graphs: Callable[[str], Graph]) -> Callable[[str], Subject]:
    made: dict[str, Subject] = {}

    def get(target: str) -> Subject:
        if target not in made:
            made[target] = judged(graphs(target), SPECS[target])
        return made[target]

    return get


_RANKED: dict[int, BranchSensitivity] = {}


def ranking_of(subject: Subject) -> Callable[[Clock], tuple[str, ...]]:
    """Measured once a subject, since it is the same every time."""

    def ranking(clock: Clock) -> tuple[str, ...]:
        if id(subject) not in _RANKED:
            _RANKED[id(subject)] = measure(subject, "layer", Clock(), no_progress)
        return rank([_RANKED[id(subject)]], {subject.role: 1.0})

    return ranking


def searched(subject: Subject, limits: Limits = LIMITS, minutes: float = 60) -> Found:
    return search(Bench([subject], limits, no_progress), ranking_of(subject), minutes)


# --- sensitivity ------------------------------------------------------------------------------------------------------


@both
def test_a_layer_with_a_planted_outlier_ranks_first_and_by_far(subjects: Callable[[str], Subject], target: str) -> None:
    found = measure(subjects(target), "layer", Clock(), no_progress)
    assert sorted(row.name for row in found.ranked) == sorted(subjects(target).layers) and found.not_measured == ()
    first, second = (row.distance for row in found.ranked[:2])
    assert found.ranked[0].name == PLANTED and first is not None and second is not None
    assert first.sqnr_db is not None and second.sqnr_db is not None and first.sqnr_db < second.sqnr_db - 15
    assert first.agreement < 0.5 < second.agreement
    noises = [row.noise for row in found.ranked]
    assert noises == sorted(noises, reverse=True)
    assert found.together is not None and found.together.agreement < 0.5


def test_the_layers_of_a_block_can_be_measured_together(subjects: Callable[[str], Subject]) -> None:
    found = measure(subjects("onnx"), "block", Clock(), no_progress)
    assert {row.name for row in found.ranked} == {"blocks.0", "blocks.1", "blocks.2", "head"}
    assert found.ranked[0].name == "blocks.1" and found.ranked[0].layers == tuple(BLOCKS[4:8])


def test_groups_keep_the_order_that_layers_run_in() -> None:
    names = ("patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.10.mlp.fc1", "head")
    assert list(groups_of(names, "block")) == ["patch_embed.proj", "blocks.0", "blocks.10", "head"]
    assert groups_of(names, "layer") == {name: (name,) for name in names}


def test_sensitivity_that_runs_out_of_time_names_what_it_did_not_reach(subjects: Callable[[str], Subject]) -> None:
    found = measure(subjects("onnx"), "layer", Clock(0), no_progress)
    assert found.ranked == () and found.together is None and found.not_measured == subjects("onnx").layers


def test_the_dynamic_scheme_is_measured_as_well(graphs: Callable[[str], Graph]) -> None:
    subject = judged(graphs("onnx"), OnnxQuantizeSpec(scheme="dynamic_wi8_afp32"))
    assert measure(subject, "block", Clock(), no_progress).ranked[0].name == "blocks.1"


def test_a_layer_that_cannot_be_quantized_alone_is_listed_last_with_the_reason(subjects: Callable[[str], Subject]) -> None:
    whole = subjects("onnx")

    def refusing(keep: tuple[str, ...]) -> Session:
        if PLANTED not in keep:
            raise ExportError("no such graph")
        return whole.quantized(keep)

    subject = Subject(whole.role, whole.layers, whole.fp32, refusing, whole.images, whole.labels)
    found = measure(subject, "layer", Clock(), no_progress)
    assert (found.ranked[-1].name, found.ranked[-1].distance, found.ranked[-1].error) == (PLANTED, None, "no such graph")
    assert found.together is None and rank([found], {subject.role: 1.0})[-1] == PLANTED
    refused = searched(subject)  # the search can do without that layer
    assert refused.trials[0].error == "no such graph" and refused.trials[0].verdict == FAIL


def test_distance_is_the_ratio_of_signal_to_noise_in_decibels() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert distance(expected, np.array([[3.0, 4.5]], np.float32)) == Distance(pytest.approx(20.0), 1.0)
    assert distance(expected, np.array([[5.0, 4.0]], np.float32)).agreement == 0.0
    assert distance(expected, expected) == Distance(None, 1.0) and distance(expected, expected).noise == 0
    assert distance(expected, np.array([[np.inf, 0]], np.float32)).sqnr_db == LEAST_DB


def test_branches_are_ranked_together_by_the_images_they_get() -> None:
    def branch(role: str, **db: float) -> BranchSensitivity:
        rows = [Sensitivity(name, (name,), Distance(value, 1.0)) for name, value in db.items()]
        return BranchSensitivity(role, 10, None, tuple(rows), ("late",))

    found = [branch("simple", a=10.0, b=20.0), branch("complex", a=40.0, b=15.0)]
    assert rank(found, {"simple": 0.9, "complex": 0.1}) == ("a", "b", "late")
    assert rank(found, {"simple": 0.1, "complex": 0.9}) == ("b", "a", "late")


# --- search -----------------------------------------------------------------------------------------------------------


@both
def test_the_search_keeps_exactly_the_planted_layer_float(subjects: Callable[[str], Subject], target: str) -> None:
    found = searched(subjects(target))
    assert (found.keep_float, found.met, found.ended) == ((PLANTED,), True, MET)
    assert found.trials[0].keep_float == () and found.trials[0].verdict == FAIL and found.trials[0].slowdown == 1.0
    best = next(t for t in found.trials if t.keep_float == (PLANTED,))
    assert best.verdict == PASS and best.slowdown is not None and best.slowdown > 0
    assert f'keep_float: ["{PLANTED}"]' in found.said()
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_the_list_found_gives_the_same_answers_pasted_into_keep_float(
    subjects: Callable[[str], Subject], graphs: Callable[[str], Graph]
) -> None:
    found = searched(subjects("onnx"))
    best = next(t for t in found.trials if t.keep_float == found.keep_float)
    pasted = searched(judged(graphs("onnx"), OnnxQuantizeSpec(keep_float=found.keep_float)))
    assert (pasted.keep_float, pasted.met, len(pasted.trials)) == ((), True, 1)
    assert (pasted.trials[0].counts.lost, pasted.trials[0].counts.won) == (best.counts.lost, best.counts.won)


def test_the_same_search_makes_the_same_trials(subjects: Callable[[str], Subject]) -> None:
    strict = Limits(8, 100, 0.95)
    first, second = (searched(subjects("onnx"), strict) for _ in range(2))
    assert (first.keep_float, first.order, first.ended) == (second.keep_float, second.order, second.ended)
    assert [(t.keep_float, t.counts.lost, t.counts.won) for t in first.trials] == [
        (t.keep_float, t.counts.lost, t.counts.won) for t in second.trials
    ]
    assert len({frozenset(t.keep_float) for t in first.trials}) == len(first.trials)  # none twice


def test_no_layer_of_a_set_that_was_found_can_be_given_back(subjects: Callable[[str], Subject]) -> None:
    subject = subjects("onnx")
    bench = Bench([subject], Limits(8, 100, 0.95), no_progress)
    found = search(bench, ranking_of(subject), 60)
    assert found.met and len(found.keep_float) > 1
    for layer in found.keep_float:
        fewer = tuple(name for name in found.keep_float if name != layer)
        assert bench.trial(fewer, Clock()).verdict != PASS


def test_where_every_layer_int8_does_there_is_no_search(subjects: Callable[[str], Subject]) -> None:
    def never(clock: Clock) -> tuple[str, ...]:
        raise AssertionError("the layers were ranked")

    found = search(Bench([subjects("onnx")], Limits(100, 1, 0.95), no_progress), never, 60)
    assert (found.keep_float, found.met, found.ended, found.order, len(found.trials)) == ((), True, MET, (), 1)


def test_no_minutes_at_all_still_give_a_best_so_far_that_was_measured(subjects: Callable[[str], Subject]) -> None:
    found = searched(subjects("onnx"), minutes=0)
    assert (found.keep_float, found.met, found.ended, len(found.trials)) == ((), False, MINUTES, 1)
    assert found.trials[0].counts.images == 60 and found.trials[0].counts.lost > 0 and "its minutes were up" in found.said()


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_ctrl_c_ends_the_search_with_the_best_so_far(subjects: Callable[[str], Subject], trials: int) -> None:
    """Pressed in the middle of the first trial, of the ranking, or of a trial with more layers float than do."""
    subject = subjects("onnx")

    def pressed(step: str, done: int, total: int) -> None:
        if step.startswith(f"trial {trials + 1},") and done == 5:
            raise KeyboardInterrupt

    def ranking(clock: Clock) -> tuple[str, ...]:
        if trials == 1:
            raise KeyboardInterrupt
        return ("head", *reversed(BLOCKS))  # a bad one, so that several trials are needed

    found = search(Bench([subject], LIMITS, pressed), ranking, 60)
    assert (found.ended, found.met, len(found.trials)) == (INTERRUPTED, False, trials)
    assert "interrupted" in found.said()
    assert found.keep_float in [(), *(t.keep_float for t in found.trials)]


def test_a_bad_ranking_costs_trials_and_not_layers(subjects: Callable[[str], Subject]) -> None:
    """The last layer of a ranking is found by bisection, and those before it are given back."""
    order = ("head", "blocks.0.attn.qkv", "blocks.2.attn.qkv", PLANTED, *BLOCKS[:2])
    found = search(Bench([subjects("onnx")], LIMITS, no_progress), lambda clock: order, 60)
    assert found.keep_float == (PLANTED,) and found.met


def test_limits_that_nothing_holds_end_with_the_least_drop_and_say_so(subjects: Callable[[str], Subject]) -> None:
    found = searched(subjects("onnx"), Limits(0, 100, 0.95))
    assert (found.met, found.ended) == (False, EXHAUSTED) and PLANTED in found.keep_float
    assert min(t.drop_pp.upper for t in found.trials) == next(
        t.drop_pp.upper for t in found.trials if t.keep_float == found.keep_float
    )
    assert all(len(t.keep_float) < len(subjects("onnx").layers) for t in found.trials)  # something is left to quantize


def test_a_set_that_is_too_slow_does_not_hold(subjects: Callable[[str], Subject]) -> None:
    found = searched(subjects("onnx"), Limits(45, 0.001, 0.95))
    assert not found.met and found.ended == EXHAUSTED
    assert any(t.verdict == PASS for t in found.trials)  # but for the time


def test_too_few_images_are_said_with_how_many_would_decide(subjects: Callable[[str], Subject]) -> None:
    whole = subjects("onnx")
    limits = Limits(6, 100, 0.95)
    found = searched(whole, limits)
    undecided = [t for t in found.trials if t.verdict == INCONCLUSIVE]
    assert undecided
    for trial in undecided:
        assert trial.images_needed is not None and trial.images_needed > trial.counts.images
        factor = trial.images_needed / trial.counts.images
        drop = paired_difference(factor * trial.counts.lost, factor * trial.counts.won, trial.images_needed, 0.95)
        assert 100 * drop.upper <= 6 or 100 * drop.lower > 6
    assert all(t.images_needed is None for t in found.trials if t.verdict != INCONCLUSIVE)


def test_a_trial_counts_the_images_of_all_branches(
    subjects: Callable[[str], Subject], graphs: Callable[[str], Graph]
) -> None:
    one, other = subjects("onnx"), judged(graphs("onnx"), OnnxQuantizeSpec(), "simple", 30)
    together, alone = Bench([one, other], LIMITS, no_progress), Bench([one], LIMITS, no_progress)
    both_lost, one_lost = together.trial((), Clock()), alone.trial((), Clock())
    assert (both_lost.counts.images, one_lost.counts.images) == (90, 60)
    assert both_lost.counts.lost > one_lost.counts.lost and together.shares == {"complex": 60 / 90, "simple": 30 / 90}


# --- latency ----------------------------------------------------------------------------------------------------------


def test_a_graph_and_what_it_is_held_against_take_turns(subjects: Callable[[str], Subject]) -> None:
    fp32, image = subjects("onnx").fp32, HELD_OUT[0]
    ran: list[str] = []

    class Noted:
        input_shape, output_shape = fp32.input_shape, fp32.output_shape

        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, image: Tensor) -> np.ndarray:
            ran.append(self.name)
            return fp32.run(image)

    a, b, same = Noted("a"), Noted("b"), Noted("same")
    assert slowdown([Pair(a, b, image, 0.5), Pair(same, same, image, 0.5)], rounds=10) > 0
    assert ran.count("a") == ran.count("b") == ran.count("same") > 10
    rounds = [sorted(ran[at : at + 3]) for at in range(len(ran) - 30, len(ran), 3)]
    assert rounds == [["a", "b", "same"]] * 10
    ran.clear()
    assert slowdown([Pair(a, a, image, 1.0)]) == 1.0 and not ran
