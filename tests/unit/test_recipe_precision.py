"""What of a recipe contradicts a measurement of layers, or a search for those to keep float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from athe_export.errors import RecipeError
from athe_export.recipe import AutoPrecisionSpec, SensitivitySpec, load_recipe
from tests.conftest import TINY, write_recipe

AUTO = {"max_top1_drop_pp": 0.3}


def of_onnx(folder: Path, quantize: dict[str, Any], target: dict[str, Any] | None = None, **changes: Any) -> Path:
    return write_recipe(folder, TINY | {"targets": {"onnx": {"quantize": quantize, **(target or {})}}} | changes)


def test_neither_is_done_unless_it_is_asked_for(tmp_path: Path) -> None:
    spec = load_recipe(of_onnx(tmp_path, {})).recipe.targets.onnx
    assert spec is not None and spec.quantize.sensitivity is None and spec.quantize.auto is None


def test_both_stand_beside_layers_that_the_recipe_keeps_float(tmp_path: Path) -> None:
    quantize = {"keep_float": ["head"], "sensitivity": {}, "auto": AUTO}
    spec = load_recipe(of_onnx(tmp_path, quantize)).recipe.targets.onnx
    assert spec is not None and spec.quantize.keep_float == ("head",)
    assert spec.quantize.sensitivity == SensitivitySpec(256, "layer")
    assert spec.quantize.auto == AutoPrecisionSpec(0.3, 1.5, 30.0, None)


@pytest.mark.parametrize(
    ("quantize", "target", "changes", "said"),
    [
        ({"auto": {}}, {}, {}, "auto.max_top1_drop_pp: is missing"),
        ({"auto": AUTO}, {"precisions": ["fp32"]}, {}, "quantize.auto: is about int8 graphs"),
        ({"sensitivity": {}}, {"precisions": ["fp32"]}, {}, "quantize.sensitivity: is about int8 graphs"),
        ({"auto": AUTO | {"max_top1_drop_pp": 60}}, {}, {}, "max_top1_drop_pp: 60.0 is more than parity.max_top1_drop_pp 50.0"),
        ({"auto": AUTO}, {}, {"data": TINY["data"] | {"gate": {"split": "holdout"}}}, "auto: measures on the held-out images"),
        ({"sensitivity": {}}, {}, {"data": TINY["data"] | {"gate": {"split": "holdout"}}}, "sensitivity: measures on the held-out"),
        ({"auto": AUTO | {"max_slowdown": 0.5}}, {}, {}, "max_slowdown: 0.5 is too small"),
        ({"sensitivity": {"by": "head"}}, {}, {}, "'head' is not one of layer, block"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_message_at_its_key(
    tmp_path: Path, quantize: dict[str, Any], target: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(of_onnx(tmp_path, quantize, target, **changes))
    assert said in caught.value.what and "1 problem" in caught.value.what
