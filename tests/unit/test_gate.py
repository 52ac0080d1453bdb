"""The parity gate on planted faults, and the reference that it stands on."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.errors import BundleIntegrityError
from athe_export.parity.answers import TargetAnswers
from athe_export.parity.gate import ParityReport, judge
from athe_export.parity.limits import FAIL, INCONCLUSIVE, PASS, GateLimits, LimitResult, worst
from athe_export.parity.reference import Reference, read_reference
from athe_export.runtime.routing import RouterPolicy

CLASSES = 10
LIMITS = GateLimits(max_top1_drop_pp=0.7, min_agreement=0.97, min_router_agreement=0.99, confidence=0.95)
POLICY = RouterPolicy((0.5,))
NAMES = ("simple", "complex")


def make_reference(images: int = 4000, branches: int = 2) -> Reference:
    """A reference whose branches are right on 60% of the images and more, the harder the better."""
    random = np.random.RandomState(0)
    labels = random.randint(0, CLASSES, images)
    right = random.rand(branches, images) < np.linspace(0.6, 0.8, branches)[:, None]
    answers = np.where(right, labels, (labels + random.randint(1, CLASSES, (branches, images))) % CLASSES)
    logits = random.rand(branches, images, CLASSES) + 5 * np.eye(CLASSES)[answers]
    scores = random.rand(images).astype(np.float32)
    return Reference(np.arange(images), labels, logits.astype(np.float16), scores)


def perfect(reference: Reference, policy: RouterPolicy | None = POLICY) -> TargetAnswers:
    """A target that routes as the reference and gives its logits."""
    routed = reference.routed(policy)
    return TargetAnswers(routed, reference.logits[routed, np.arange(len(routed))].astype(np.float32))


def answering(branch: npt.NDArray[np.int64], answer: npt.NDArray[np.int64]) -> TargetAnswers:
    """A target that takes these branches and gives these classes."""
    return TargetAnswers(branch, 5 * np.eye(CLASSES, dtype=np.float32)[answer])


def verdicts(report: ParityReport) -> dict[str, str]:
    """Of the whole system's limits."""
    return {limit.name: limit.verdict for limit in report.limits if limit.name.count(".") == 1}


def branch_verdicts(report: ParityReport) -> dict[str, str]:
    return {limit.name: limit.verdict for limit in report.limits if limit.name.count(".") == 2}


def gate(reference: Reference, found: TargetAnswers, limits: GateLimits = LIMITS) -> ParityReport:
    return judge(reference, POLICY, {"onnx": found}, NAMES, limits)


def test_a_target_that_answers_as_the_reference_passes_every_limit() -> None:
    report = gate(make_reference(), perfect(make_reference()))
    assert verdicts(report) == {"onnx.max_top1_drop_pp": PASS, "onnx.min_agreement": PASS, "onnx.min_router_agreement": PASS}
    assert report.verdict == PASS
    measured = report.targets["onnx"]
    assert (measured["drop_pp"], measured["agreement"]) == (0, 1)
    assert (measured["router_agreement"], measured["router_flips"]) == (1, 0)
    assert measured["drop_lower_bound_pp"] < 0 < measured["drop_bound_pp"] < 0.7
    assert report.reference_top1 == measured["top1"] == pytest.approx(0.7, abs=0.03)


def test_shifted_labels_fail_accuracy_and_agreement_and_not_the_router() -> None:
    reference = make_reference()
    sound = perfect(reference)
    report = gate(reference, answering(sound.branch, (sound.answer + 1) % CLASSES))
    assert verdicts(report) == {"onnx.max_top1_drop_pp": FAIL, "onnx.min_agreement": FAIL, "onnx.min_router_agreement": PASS}
    assert report.verdict == FAIL
    assert report.targets["onnx"]["agreement"] == 0


def test_swapped_branches_fail_the_router_and_agreement() -> None:
    reference = make_reference()
    swapped = 1 - reference.routed(POLICY)
    found = answering(swapped, reference.answers()[swapped, np.arange(len(swapped))])
    report = gate(reference, found)
    assert verdicts(report)["onnx.min_router_agreement"] == FAIL
    assert verdicts(report)["onnx.min_agreement"] == FAIL
    assert report.targets["onnx"]["router_agreement"] == 0
    assert all(branch["agreement"] == 1 for branch in report.targets["onnx"]["branches"].values())  # each is sound by itself


def test_router_flips_alone_fail_the_router_alone() -> None:
    reference = make_reference()
    sound = perfect(reference)
    flipped = sound.branch.copy()
    flipped[::40] = 1 - flipped[::40]
    report = gate(reference, answering(flipped, sound.answer))
    assert verdicts(report) == {"onnx.max_top1_drop_pp": PASS, "onnx.min_agreement": PASS, "onnx.min_router_agreement": FAIL}
    assert report.verdict == FAIL
    assert report.targets["onnx"]["router_flips"] == 100


def test_a_fault_of_one_branch_shows_in_that_branchs_row() -> None:
    reference = make_reference()
    sound = perfect(reference)
    broken = np.where(sound.branch == 1, (sound.answer + 3) % CLASSES, sound.answer)
    rows = gate(reference, answering(sound.branch, broken)).targets["onnx"]["branches"]
    assert (rows["simple"]["agreement"], rows["simple"]["drop_pp"]) == (1, 0)
    assert rows["complex"]["agreement"] == 0
    assert rows["complex"]["drop_pp"] > 50
    assert rows["simple"]["images"] + rows["complex"]["images"] == 4000


def test_a_ruined_branch_fails_however_rarely_it_is_used() -> None:
    """30 of 4,000 images lie inside every limit of the whole; the branch is gone all the same."""
    reference = make_reference()
    policy = RouterPolicy((float(np.sort(reference.scores)[-31]),))
    sound = perfect(reference, policy)
    ruined = np.where(sound.branch == 1, (sound.answer + 1) % CLASSES, sound.answer)
    report = judge(reference, policy, {"onnx": answering(sound.branch, ruined)}, NAMES, LIMITS)
    assert set(verdicts(report).values()) <= {PASS, INCONCLUSIVE}
    assert branch_verdicts(report) == {
        "onnx.simple.max_top1_drop_pp": PASS,
        "onnx.simple.min_agreement": PASS,
        "onnx.complex.max_top1_drop_pp": FAIL,
        "onnx.complex.min_agreement": FAIL,
    }
    assert report.verdict == FAIL


def test_a_branch_that_no_image_reaches_is_undecided() -> None:
    reference = make_reference()
    everything_easy = RouterPolicy((1.0,))
    report = judge(reference, everything_easy, {"onnx": perfect(reference, everything_easy)}, NAMES, LIMITS)
    assert set(verdicts(report).values()) == {PASS}
    assert branch_verdicts(report)["onnx.complex.images"] == INCONCLUSIVE == report.verdict


def test_a_drop_is_counted_on_the_same_images() -> None:
    """What is lost and what is won elsewhere cancel in the difference and not in the agreement."""
    reference = make_reference()
    sound = perfect(reference)
    right = np.flatnonzero(sound.answer == reference.labels)[:60]
    wrong = np.flatnonzero(sound.answer != reference.labels)[:60]
    answer = sound.answer.copy()
    answer[right] = (answer[right] + 1) % CLASSES
    answer[wrong] = reference.labels[wrong]
    measured = gate(reference, answering(sound.branch, answer)).targets["onnx"]
    assert measured["drop_pp"] == pytest.approx(0)
    assert measured["agreement"] == pytest.approx(1 - 120 / 4000)


def test_few_images_are_inconclusive_however_well_they_agree() -> None:
    report = gate(make_reference(20), perfect(make_reference(20)))
    assert set(verdicts(report).values()) == {INCONCLUSIVE}
    assert report.verdict == INCONCLUSIVE


def test_a_fault_beside_an_undecided_limit_fails() -> None:
    reference = make_reference(20)
    sound = perfect(reference)
    report = gate(reference, answering(1 - sound.branch, sound.answer))
    assert set(verdicts(report).values()) == {FAIL, INCONCLUSIVE}
    assert report.verdict == FAIL


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], PASS),
        ([PASS, PASS], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, FAIL, PASS], FAIL),
        ([FAIL], FAIL),
    ],
)
def test_fail_outranks_inconclusive_outranks_pass(found: list[str], expected: str) -> None:
    assert worst(found) == worst(reversed(found)) == expected


def test_one_failing_target_fails_the_gate() -> None:
    reference = make_reference()
    sound = perfect(reference)
    shifted = answering(sound.branch, (sound.answer + 1) % CLASSES)
    report = judge(reference, POLICY, {"onnx": sound, "other": shifted}, NAMES, LIMITS)
    assert report.verdict == FAIL
    assert {name for name, verdict in verdicts(report).items() if verdict == FAIL} == {
        "other.max_top1_drop_pp",
        "other.min_agreement",
    }


def test_targets_are_compared_with_each_other_at_each_precision_that_both_have() -> None:
    """The systems of a bundle by name: `target`, and `target/precision` of any further precision."""
    reference = make_reference()
    sound = perfect(reference)
    fp32 = dataclasses.replace(sound, precision="fp32")
    answers = {"onnx": sound, "onnx/fp32": fp32, "litert": sound, "litert/fp32": fp32, "other": sound}
    report = judge(reference, POLICY, answers, NAMES, LIMITS)
    assert [(*pair["targets"], pair["precision"]) for pair in report.between] == [
        ("onnx", "litert", "int8"), ("onnx", "other", "int8"), ("onnx", "litert", "fp32"), ("litert", "other", "int8")
    ]  # fmt: skip
    assert set(report.targets) == set(answers)
    assert {name.rsplit(".", 1)[0] for name in verdicts(report)} == set(answers)
    assert gate(reference, sound).between == ()


def test_what_two_targets_answer_differently_is_counted_on_all_images_and_logits_where_they_took_one_branch() -> None:
    reference = make_reference()
    sound = perfect(reference)
    branch, logits = sound.branch.copy(), sound.logits.copy()
    branch[:40] = 1 - branch[:40]  # with logits far off, which say nothing about another branch
    logits[:40] += 100
    logits[40:60] = 5 * np.eye(CLASSES, dtype=np.float32)[(sound.answer[40:60] + 1) % CLASSES]
    logits[100, sound.answer[100]] += 9
    report = judge(reference, POLICY, {"onnx": sound, "litert": TargetAnswers(branch, logits)}, NAMES, LIMITS)
    (pair,) = report.between
    assert pair["agreement"] == 1 - 20 / 4000
    assert pair["router_agreement"] == 1 - 40 / 4000
    assert pair["max_logit_difference"] == pytest.approx(9)
    assert report.targets["onnx"]["max_logit_difference"] == 0
    assert report.targets["litert"]["max_logit_difference"] == pytest.approx(9)


def test_targets_that_share_no_branch_have_no_logits_to_compare() -> None:
    reference = make_reference(50)
    one, other = (TargetAnswers(np.full(50, i), perfect(reference).logits) for i in (0, 1))
    report = judge(reference, POLICY, {"onnx": one, "litert": other}, NAMES, LIMITS)
    assert report.between[0]["max_logit_difference"] is None
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("broken", ["litert", "litert/fp32"])
def test_each_system_is_held_against_the_limits_by_itself(broken: str) -> None:
    reference = make_reference()
    sound = perfect(reference)
    answers = dict.fromkeys(("onnx", "litert", "litert/fp32"), sound)
    answers[broken] = answering(sound.branch, (sound.answer + 1) % CLASSES)
    report = judge(reference, POLICY, answers, NAMES, LIMITS)
    assert report.verdict == FAIL
    failed = {name for name, verdict in verdicts(report).items() if verdict == FAIL}
    assert failed == {f"{broken}.max_top1_drop_pp", f"{broken}.min_agreement"}


def test_a_plain_model_is_gated_without_a_router() -> None:
    reference = make_reference(4000, 1)
    report = judge(reference, None, {"onnx": perfect(reference, None)}, ("plain",), LIMITS)
    assert verdicts(report) == {"onnx.max_top1_drop_pp": PASS, "onnx.min_agreement": PASS}
    assert report.targets["onnx"]["share"] == {"plain": 1}


def test_three_branches_are_gated_alike() -> None:
    reference, policy, names = make_reference(4000, 3), RouterPolicy((0.3, 0.6)), ("a", "b", "c")
    report = judge(reference, policy, {"onnx": perfect(reference, policy)}, names, LIMITS)
    assert report.verdict == PASS
    assert sum(report.targets["onnx"]["share"].values()) == pytest.approx(1)
    assert sum(b["images"] for b in report.targets["onnx"]["branches"].values()) == 4000


@pytest.mark.parametrize(("limit", "verdict"), [(0.5, PASS), (0.49, INCONCLUSIVE)])
def test_a_limit_that_is_just_met_holds(limit: float, verdict: str) -> None:
    """At confidence one half the bound that a pass stands on is the estimate itself."""
    reference = make_reference(998)
    sound = perfect(reference)
    right = np.flatnonzero(sound.answer == reference.labels)[:5]  # 5 of 998 + 2
    answer = sound.answer.copy()
    answer[right] = (answer[right] + 1) % CLASSES
    report = gate(reference, answering(sound.branch, answer), GateLimits(limit, 0.9, 0.9, 0.5))
    assert verdicts(report)["onnx.max_top1_drop_pp"] == verdict


def test_a_limit_says_whether_and_by_how_much_it_breaks() -> None:
    assert LimitResult("onnx.min_agreement", 0.97, 0.9, FAIL, 0.9, 0.95, 100).said() == (
        "onnx.min_agreement 0.97 is broken: bound 0.9, off by 0.07"
    )
    assert "holds" in LimitResult("x", 0.97, 0.99, PASS, 0.99, 1.0, 100).said()
    assert LimitResult("x", 0.97, 0.9, INCONCLUSIVE, 0.9, 0.98, 100, 0.96, 2500).said() == (
        "x 0.97 cannot be decided with so few images: bound 0.9, off by 0.07; 100 images leave 0.9 to 0.98; if it stays at 0.96, about 2,500 "
        "would decide"
    )


def test_the_report_is_plain_json_with_the_documented_fields() -> None:
    reference = make_reference(50)
    everything_easy = answering(np.zeros(50, np.int64), reference.answers()[0])
    content = json.loads(json.dumps(gate(reference, everything_easy).to_json(), allow_nan=False))
    assert {"images", "verdict", "reference", "targets", "limits"} <= content.keys()
    assert content["images"] == 50
    assert set(content["reference"]) == {"top1"}
    wanted = {"top1", "drop_pp", "drop_bound_pp", "agreement", "router_agreement", "share", "branches"}
    assert wanted <= content["targets"]["onnx"].keys()
    assert content["targets"]["onnx"]["share"] == {"simple": 1, "complex": 0}
    assert content["targets"]["onnx"]["branches"]["complex"]["images"] == 0
    fields = {"name", "limit", "value", "verdict", "lower", "upper", "images", "measured", "images_needed"}
    assert all(set(limit) - {"why"} == fields for limit in content["limits"])
    assert content["confidence"] == 0.95


def test_a_reference_survives_its_file() -> None:
    reference = make_reference(30)
    again = read_reference(reference.to_bytes(), "reference.npz")
    for name in ("ids", "labels", "logits", "scores"):
        assert np.array_equal(getattr(again, name), getattr(reference, name))
        assert getattr(again, name).dtype == getattr(reference, name).dtype


def test_the_first_images_of_a_reference_are_gated_as_a_reference_of_their_own() -> None:
    reference = make_reference(100)
    part = reference.first(30)
    assert part.logits.shape == (2, 30, CLASSES)
    assert np.array_equal(part.routed(POLICY), reference.routed(POLICY)[:30])
    assert gate(part, perfect(part)).images == 30
    assert reference.first(None) is reference
    assert reference.first(1000) is reference


def _saved(**arrays: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    sound = make_reference(5)
    np.savez(buffer, **(vars(sound) | arrays))
    return buffer.getvalue()


def _array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [
        lambda: b"",
        lambda: b"not an archive",
        lambda: make_reference(30).to_bytes()[:200],
        lambda: make_reference(30).to_bytes()[:-40],
        lambda: make_reference(30).to_bytes().replace(b"scores.npy", b"others.npy"),
        lambda: pickle.dumps({"ids": 1}),
        _array,
        lambda: _saved(labels=np.array([object()] * 5)),
        lambda: _saved(labels=np.zeros(4, np.int64)),
        lambda: _saved(logits=np.zeros((5, CLASSES), np.float16)),
        lambda: _saved(scores=np.zeros((5, 1), np.float32)),
    ],
    ids=["empty", "text", "truncated", "cut-end", "array-missing", "pickle", "one-array", "objects", "labels", "logits", "scores"],
)  # fmt: skip
def test_a_damaged_reference_is_an_integrity_error(damaged: Callable[[], bytes]) -> None:
    with pytest.raises(BundleIntegrityError) as caught:
        read_reference(damaged(), "reference.npz")
    assert caught.value.exit_code == 5
    assert caught.value.where == "reference.npz"
