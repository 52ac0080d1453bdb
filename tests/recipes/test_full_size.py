"""The full-size recipe builds from its shipped checkpoint; gated on few images, since all 10,000 take a quarter of an hour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from athe_export.bundle.reader import open_bundle
from athe_export.shipped import copy_recipe
from tests.conftest import ROOT
from tests.tools import cli

NAME = "deit_tiny_cifar100"
IMAGES = 200
METRICS = json.loads((ROOT / "artifacts" / "checkpoints" / f"athe_{NAME}.metrics.json").read_text())


@pytest.fixture(scope="module")
def folder(cifar_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recipe with a gate that so few images can decide, and bounds that take few images to fit."""
    made = tmp_path_factory.mktemp(NAME)
    copy_recipe(NAME, made)
    recipe = made / "recipes" / f"{NAME}.yaml"
    document: dict[str, Any] = yaml.safe_load(recipe.read_text())
    document["data"]["gate"]["limit"] = IMAGES
    document["router"]["threshold"] = {"share_simple": 0.5}
    document["targets"]["litert"]["quantize"]["calibrator"] = "min_max"  # histograms would take a minute more
    document["parity"] |= {"max_top1_drop_pp": 10.0, "min_agreement": 0.8, "min_router_agreement": 0.8}
    recipe.write_text(yaml.safe_dump(document))
    found = cli("build", recipe, "-o", made / "bundle", "--data-root", cifar_root, "--json")
    assert found.code == 0, found.err
    return made / "bundle"


def test_the_full_size_model_passes_its_gate_in_both_targets_and_precisions(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    assert manifest.verdict == "pass" and manifest.parity is not None
    assert set(manifest.parity["targets"]) == {"onnx", "onnx/fp32", "litert", "litert/fp32"}
    assert manifest.parity["images"] == IMAGES


def test_its_fp32_graphs_answer_as_the_metrics_of_the_checkpoint_say(folder: Path) -> None:
    """Within four standard errors of so few images."""
    parity = open_bundle(folder).manifest.parity
    assert parity is not None
    for branch, measured in parity["targets"]["onnx/fp32"]["branches"].items():
        wanted = METRICS["top1"][branch]
        error = (wanted * (1 - wanted) / max(1, measured["images"])) ** 0.5
        assert measured["images"] > 20 and abs(measured["reference_top1"] - wanted) < 4 * error + 0.1


def test_the_simple_branch_takes_less_than_four_tenths_of_the_complex_branchs_macs_and_xnnpack_takes_both_whole(
    folder: Path,
) -> None:
    graphs = {(g.target, g.role, g.precision): g for g in open_bundle(folder).manifest.graphs}
    assert graphs["litert", "simple", "int8"].mmacs < 0.4 * graphs["litert", "complex", "int8"].mmacs
    for graph in (g for g in graphs.values() if g.target == "litert"):
        assert graph.xnnpack is not None
        assert graph.xnnpack["partitions"] == (1 if graph.role == "router" else 2)
