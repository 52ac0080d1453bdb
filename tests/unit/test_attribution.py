"""Attribution and diagnosis: every image whose answer changed has one cause, and some faults have a name."""

from __future__ import annotations

import numpy as np
import pytest

from athe_export.parity.answers import TargetAnswers, TokenFindings
from athe_export.parity.attribution import attribute, said
from athe_export.parity.diagnosis import class_shift, swapped_branches
from athe_export.parity.hops import Images
from athe_export.parity.reference import Reference

CLASSES, N = 10, 200
LABELS = np.arange(N) % CLASSES
ROUTED = (np.arange(N) % 2).astype(np.int64)
IMAGES = Images(LABELS, ROUTED, ("simple", "complex"))
IDS = 1000 + np.arange(N)


def target(answer: np.ndarray, branch: np.ndarray = ROUTED) -> TargetAnswers:
    return TargetAnswers(branch, 5 * np.eye(CLASSES, dtype=np.float32)[answer])


def test_each_lost_image_has_one_cause_the_router_before_tokens_before_quantization() -> None:
    answer, branch = LABELS.copy(), ROUTED.copy()
    answer[:9] = (answer[:9] + 1) % CLASSES
    branch[:2] = 1 - branch[:2]
    decisive = np.zeros(N, np.bool_)
    decisive[1:4] = True  # the first of them flipped too
    found = attribute(IMAGES, IDS, LABELS, target(answer, branch), TokenFindings({}, {}, {}, decisive))
    assert (found["lost"], found["won"]) == (9, 0)
    assert found["lost_by"] == {"router_flip": 2, "token_choice": 2, "quantization": {"simple": 3, "complex": 2}}
    assert [c["cause"] for c in found["changed"]] == ["router_flip"] * 2 + ["token_choice"] * 2 + ["quantization"] * 5
    assert said("onnx", found) == (
        "onnx lost 9 images and won 0: 2 by the router, 2 by the choice of tokens, 3 by quantization of simple, "
        "2 by quantization of complex"
    )


def test_changed_images_are_listed_whether_lost_won_or_wrong_both_times() -> None:
    expected, answer = LABELS.copy(), LABELS.copy()
    expected[1:3] = (expected[1:3] + 1) % CLASSES
    answer[0], answer[2] = 5, 7
    found = attribute(IMAGES, IDS, expected, target(answer), None)
    assert [c["id"] for c in found["changed"]] == [1000, 1001, 1002]
    assert found["changed"][2] == {
        "id": 1002, "label": 2, "cause": "quantization",
        "before": {"branch": "simple", "answer": 3}, "after": {"branch": "simple", "answer": 7},
    }  # fmt: skip
    assert (found["lost"], found["won"]) == (1, 1)


def test_without_torch_token_choice_is_not_told_from_quantization_and_that_is_said() -> None:
    answer = LABELS.copy()
    answer[0] = 5
    found = attribute(IMAGES, IDS, LABELS, target(answer), None)
    assert found["lost_by"] == {"router_flip": 0, "token_choice": None, "quantization": {"simple": 1, "complex": 0}}
    assert "torch" in found["token_choice_not_measured"]
    assert "tokens" not in said("onnx", found)


def test_the_worst_classes_come_with_their_counts_and_no_class_that_lost_nothing() -> None:
    answer = LABELS.copy()
    of_three, of_seven = np.flatnonzero(LABELS == 3), np.flatnonzero(LABELS == 7)
    answer[of_seven[:5]], answer[of_three[:2]] = 0, 0
    found = attribute(IMAGES, IDS, LABELS, target(answer), None)
    assert found["worst_classes"] == [
        {"label": 7, "images": 20, "lost": 5, "won": 0},
        {"label": 3, "images": 20, "lost": 2, "won": 0},
    ]


@pytest.mark.parametrize("shift", [1, 9])
def test_classes_in_a_shifted_order_are_named(shift: int) -> None:
    answer = (LABELS + shift) % CLASSES
    answer[::5] = 0
    assert class_shift(LABELS, answer, CLASSES, 0.95) == shift


@pytest.mark.parametrize(
    "answer",
    [LABELS, np.random.RandomState(0).randint(0, CLASSES, N), np.full(N, 3), np.where(LABELS == 4, 5, LABELS)],
    ids=["right", "at random", "always one class", "one class for its neighbour"],
)
def test_answers_that_are_only_wrong_are_not_called_shifted(answer: np.ndarray) -> None:
    assert class_shift(LABELS, answer, CLASSES, 0.95) is None


def test_images_of_one_class_alone_do_not_make_a_shift() -> None:
    assert class_shift(np.full(N, 2), np.full(N, 3), CLASSES, 0.95) is None


def test_swapped_branches_are_named() -> None:
    logits = np.random.RandomState(0).randn(2, N, CLASSES).astype(np.float16)
    reference = Reference(IDS, LABELS, logits, np.zeros(N, np.float32))
    noise = 0.2 * np.random.RandomState(1).randn(N, CLASSES)
    sound, swapped = (logits[r, np.arange(N)] + noise for r in (ROUTED, 1 - ROUTED))
    assert swapped_branches(reference, ROUTED, TargetAnswers(ROUTED, sound.astype(np.float32)), IMAGES.branches) == ()
    said_of = swapped_branches(reference, ROUTED, TargetAnswers(ROUTED, swapped.astype(np.float32)), IMAGES.branches)
    assert [line.split(":")[0] for line in said_of] == [
        "branch simple answers as the reference's complex does",
        "branch complex answers as the reference's simple does",
    ]
