"""What another machine may answer otherwise: tolerances of the golden test, and how far images lie from a decision."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.bundle.manifest import Manifest, parse_manifest
from athe_export.runtime.golden import INT8_ROUTER, margins, tolerance_of, tolerances
from tests.tools import plain_manifest

Outputs = dict[str, npt.NDArray[np.float32]]


def outputs(**spreads: float) -> Outputs:
    """Outputs of graphs, `target_role_precision`, with these standard deviations."""
    random = np.random.RandomState(0).randn(64, 10).astype(np.float32)
    random /= random.std()
    return {name.replace("_", "/"): random * np.float32(spread) for name, spread in spreads.items()}


def test_the_int8_tolerance_follows_the_logits_that_spread_least() -> None:
    one, both = tolerances(outputs(onnx_a_int8=2.0)), tolerances(outputs(onnx_a_int8=2.0, litert_b_int8=1.0))
    assert one["int8"] == pytest.approx(2 * both["int8"], rel=1e-3) and both["int8"] > 0
    assert one["fp32"] == both["fp32"]


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.3])
def test_an_int8_routers_scores_lie_in_another_range_and_change_nothing_for_the_logits(spread: float) -> None:
    alone = tolerances(outputs(onnx_a_int8=2.0))
    beside = tolerances(outputs(onnx_a_int8=2.0, litert_router_int8=spread))
    assert {name: beside[name] for name in alone} == alone
    assert set(beside) - set(alone) == {INT8_ROUTER}
    assert tolerance_of(beside, "router", "int8") >= 1 / 256, "less than a step of its scores"
    assert tolerance_of(beside, "router", "fp32") == tolerance_of(beside, "a", "fp32") == beside["fp32"]
    assert tolerance_of(beside, "a", "int8") == beside["int8"]


def test_a_branch_with_router_in_its_name_is_a_branch() -> None:
    assert tolerances(outputs(onnx_myrouter_int8=2.0)) == tolerances(outputs(onnx_a_int8=2.0))


def test_a_bundle_that_states_no_tolerance_for_routers_uses_the_one_of_the_precision() -> None:
    assert tolerance_of({"int8": 0.1, "fp32": 0.001}, "router", "int8") == 0.1


def _manifest() -> Manifest:
    content = plain_manifest().to_json()
    graph = content["graphs"][0]
    content["router"] = {"arch": "mobilenet_v1_0.25", "image_size": 32, "bounds": {"reference": [0.5], "litert": [0.25]}}
    content["graphs"] = [graph | {"target": "litert", "role": "router", "precision": p} for p in ("int8", "fp32")]
    return parse_manifest(json.dumps(content), "here")


def test_an_image_is_as_far_from_tipping_over_as_its_nearest_decision_in_tolerances() -> None:
    allowed = {"int8": 0.1, "fp32": 0.01, INT8_ROUTER: 0.05}
    found = margins(
        _manifest(),
        {
            "litert/router/int8": np.array([[0.35], [0.25], [0.95]], np.float32),  # 0.10, 0 and 0.70 from 0.25
            "litert/router/fp32": np.array([[0.9], [0.9], [0.9]], np.float32),  # 0.40 from 0.5
            "litert/a/int8": np.array([[3, 1, 0], [3, 1, 0], [1, 0.9, 0]], np.float32),  # 2, 2 and 0.1 to the second
        },
        allowed,
    )
    assert found == pytest.approx([0.10 / 0.05, 0, 0.05 / 0.1], abs=1e-5)
