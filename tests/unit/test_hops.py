"""Hops: each step from torch to a deployed graph is measured on its own, routed and per branch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.parity.answers import TargetAnswers, TokenFindings
from athe_export.parity.hops import REFERENCE, ROUTED, Images, measure_hops, weakest

CLASSES, N = 10, 400
NAMES = ("simple", "complex")
RANDOM = np.random.RandomState(0)
IMAGES = Images(RANDOM.randint(0, CLASSES, N), (np.arange(N) % 4 == 0).astype(np.int64), NAMES)
LOGITS = (RANDOM.randn(N, CLASSES) + 3 * np.eye(CLASSES)[IMAGES.labels]).astype(np.float32)
TORCH = TargetAnswers(IMAGES.routed, LOGITS, "fp32")


def system(logits: npt.NDArray[np.float32] = LOGITS, precision: str = "int8") -> TargetAnswers:
    """One that routes as the reference does."""
    return TargetAnswers(IMAGES.routed, logits, precision)


def rows(answers: dict[tuple[str, str], TargetAnswers], **tokens: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = measure_hops(IMAGES, TORCH, answers, {("onnx", "int8"): tokens["onnx"]} if tokens else {}, 0.95)
    return {(row["from"], row["to"], row["path"]): row for row in found}


def test_hops_lead_from_torch_over_the_export_to_int8_and_from_target_to_target() -> None:
    systems = {(t, p): system(precision=p) for t in ("onnx", "litert") for p in ("int8", "fp32")}
    found = measure_hops(IMAGES, TORCH, systems, {}, 0.95)
    assert [(h["from"], h["to"]) for h in found if h["path"] == ROUTED] == [
        (REFERENCE, "onnx fp32"),
        (REFERENCE, "litert fp32"),
        ("onnx fp32", "onnx int8"),
        ("litert fp32", "litert int8"),
        ("onnx fp32", "litert fp32"),
        ("onnx int8", "litert int8"),
    ]
    assert [h["path"] for h in found[:3]] == [ROUTED, *NAMES]
    assert {(h["target"], h["precision"]) for h in found} == set(systems)


def test_without_an_fp32_graph_one_hop_leads_from_torch_to_int8() -> None:
    assert {key[:2] for key in rows({("onnx", "int8"): system()})} == {(REFERENCE, "onnx int8")}


def test_a_fault_shows_on_the_hop_and_the_branch_that_it_happens_on_and_on_no_other() -> None:
    broken = LOGITS.copy()
    broken[IMAGES.routed == 1] = -broken[IMAGES.routed == 1]
    found = rows({("onnx", "fp32"): system(precision="fp32"), ("onnx", "int8"): system(broken)})
    worst = found["onnx fp32", "onnx int8", "complex"]
    assert worst["agreement"] == 0 and worst["drop_lower_pp"] > 50 and worst["logit_cosine"] == pytest.approx(-1)
    for key in (
        (REFERENCE, "onnx fp32", ROUTED), (REFERENCE, "onnx fp32", "complex"), ("onnx fp32", "onnx int8", "simple")
    ):  # fmt: skip
        assert found[key]["agreement"] == 1 and found[key]["mean_kl"] == pytest.approx(0, abs=1e-9)
    assert weakest(found.values(), "onnx", "int8") == worst
    assert weakest(found.values(), "onnx", "fp32") is None


def test_a_flip_of_the_router_is_no_fault_of_a_branch() -> None:
    flipped, logits = IMAGES.routed.copy(), LOGITS.copy()
    flipped[:40], logits[:40] = 1 - flipped[:40], -logits[:40]
    found = rows({("onnx", "int8"): TargetAnswers(flipped, logits, "int8", matched=LOGITS)})
    assert found[REFERENCE, "onnx int8", ROUTED]["agreement"] == 1 - 40 / N
    assert found[REFERENCE, "onnx int8", ROUTED]["router_agreement"] == 1 - 40 / N
    for name in NAMES:
        assert found[REFERENCE, "onnx int8", name]["agreement"] == 1
        assert "router_agreement" not in found[REFERENCE, "onnx int8", name]


def test_a_drop_is_paired_and_has_its_bounds_and_its_exact_test() -> None:
    answer = LOGITS.argmax(-1)
    right, wrong = np.flatnonzero(answer == IMAGES.labels)[:12], np.flatnonzero(answer != IMAGES.labels)[:2]
    changed = LOGITS.copy()
    changed[right, (answer[right] + 1) % CLASSES] += 50
    changed[wrong, IMAGES.labels[wrong]] += 50
    row = rows({("onnx", "int8"): system(changed)})[REFERENCE, "onnx int8", ROUTED]
    assert row["drop_pp"] == pytest.approx(100 * 10 / N)
    assert 100 * (row["top1_before"] - row["top1_after"]) == pytest.approx(row["drop_pp"])
    assert 0 < row["drop_lower_pp"] < row["drop_pp"] < row["drop_upper_pp"]
    assert row["p_value"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)


def test_divergence_and_cosine_by_hand() -> None:
    """Of (3/4, 1/4) from (1/2, 1/2): ln(1/2 / 3/4) / 2 + ln(1/2 / 1/4) / 2 nats."""
    images = Images(np.array([0, 0]), np.array([0, 0]), ("only",))
    before = TargetAnswers(images.routed, np.zeros((2, 2), np.float32) + 1, "fp32")
    after = TargetAnswers(images.routed, np.log(np.array([[3.0, 1.0], [3.0, 1.0]])).astype(np.float32))
    row = measure_hops(images, before, {("onnx", "int8"): after}, {}, 0.95)[1]
    assert row["mean_kl"] == pytest.approx((np.log(2 / 3) + np.log(2)) / 2)
    assert row["logit_cosine"] == pytest.approx(1 / np.sqrt(2))
    assert "router_agreement" not in row


def test_token_overlap_stands_in_a_branchs_row_or_says_why_it_does_not() -> None:
    tokens = TokenFindings({"simple": 0.98}, {"complex": "the branch prunes no tokens"}, {"simple": 300})
    found = rows({("onnx", "int8"): system()}, onnx=tokens)
    assert found[REFERENCE, "onnx int8", "simple"]["token_overlap"] == 0.98
    assert found[REFERENCE, "onnx int8", "simple"]["token_images"] == 300
    dense, routed = (found[REFERENCE, "onnx int8", p] for p in ("complex", ROUTED))
    assert dense["token_overlap"] is None and dense["token_overlap_not_measured"] == "the branch prunes no tokens"
    assert routed["token_overlap"] is None and routed["token_overlap_not_measured"]
    plain = rows({("onnx", "int8"): system()})[REFERENCE, "onnx int8", "simple"]
    assert plain["token_overlap"] is None and "torch" in plain["token_overlap_not_measured"]


def test_a_branch_without_images_has_a_row_without_figures() -> None:
    images = Images(IMAGES.labels, np.zeros(N, np.int64), NAMES)
    row = measure_hops(images, TORCH, {("onnx", "int8"): system()}, {}, 0.95)[2]
    assert (row["path"], row["images"], row["agreement"], row["drop_pp"]) == ("complex", 0, None, None)
    json.dumps(row, allow_nan=False)
