"""Every shipped recipe builds and passes its own gate; CIFAR-100 recipes where the data are at hand."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from athe_export.recipe import load_recipe
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def build(recipe: Path, output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "athe_export.cli", "build", str(recipe), "-o", str(output), "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_reads_and_pins_its_checkpoint(path: Path) -> None:
    file = load_recipe(path)
    assert file.recipe.checkpoint.path is not None
    weights = file.resolve(file.recipe.checkpoint.path)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == file.recipe.checkpoint.sha256
    assert weights.stat().st_size <= 2_000_000
    metrics = json.loads(weights.with_suffix(".metrics.json").read_text())
    assert metrics["checkpoint_sha256"] == file.recipe.checkpoint.sha256
    assert metrics["complete"] and "train" in metrics["command"]


@pytest.fixture(scope="module", params=RECIPES, ids=lambda p: p.stem)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A shipped recipe, built as a user would, and where its bundle is."""
    path: Path = request.param
    if load_recipe(path).recipe.data.dataset == "cifar100" and not os.environ.get("ATHE_DATA_ROOT"):
        pytest.skip("ATHE_DATA_ROOT is not set: CIFAR-100 is not at hand")
    output = tmp_path_factory.mktemp("bundles") / path.stem
    return build(path, output), output


def test_a_shipped_recipe_passes_its_gate_on_every_image(shipped: tuple[dict[str, Any], Path]) -> None:
    document, output = shipped
    assert document["verdict"] == "pass"
    parity = document["parity"]
    assert parity["images"] == {"quickstart": 6000, "micro_cifar100": 10_000}[output.name]
    assert all(limit["verdict"] == "pass" for limit in parity["limits"])


def test_a_shipped_recipe_uses_all_its_branches(shipped: tuple[dict[str, Any], Path]) -> None:
    target = shipped[0]["parity"]["targets"]["onnx"]
    assert set(target["share"]) == {"simple", "complex"}
    assert min(target["share"].values()) > 0.05


def test_inspect_lists_router_branches_fixed_shapes_int8_coverage_and_digests(shipped: tuple[dict[str, Any], Path]) -> None:
    command = [sys.executable, "-m", "athe_export.cli", "inspect", str(shipped[1]), "--json"]
    manifest = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    graphs = {g["role"]: g for g in manifest["graphs"]}
    assert set(graphs) == {"router", "simple", "complex"}
    for graph in graphs.values():
        assert all(isinstance(d, int) and d > 0 for t in (*graph["inputs"], *graph["outputs"]) for d in t["shape"])
        content = (shipped[1] / graph["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == graph["sha256"] and len(content) == graph["bytes"]
        assert len(graph["float_op_names"]) == graph["float_ops"] > 0
    depth = load_recipe(ROOT / "recipes" / f"{shipped[1].name}.yaml").recipe.model.depth
    assert graphs["simple"]["int8_ops"] == graphs["complex"]["int8_ops"] == 4 * depth + 2
    assert graphs["simple"]["mmacs"] < 0.6 * graphs["complex"]["mmacs"]


def test_the_quickstart_is_right_on_nine_of_ten_simple_images() -> None:
    metrics = json.loads((ROOT / "artifacts/checkpoints/quickstart.metrics.json").read_text())
    assert metrics["top1_simple_half"]["dense"] >= 0.9
    assert metrics["top1_simple_half"]["simple"] >= 0.9


def test_the_micro_checkpoint_reaches_its_stated_accuracy() -> None:
    metrics = json.loads((ROOT / "artifacts/checkpoints/micro_cifar100.metrics.json").read_text())
    assert metrics["images"] == 10_000
    assert metrics["top1"]["dense"] >= 0.35
