"""Every shipped baseline, shrunk to a model of generated images: it trains, and its graphs run in both runtimes.

At their own size they are built by whoever measures them; here each file is read, and all but its sizes is its own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from athe_export.bundle.reader import open_bundle
from athe_export.data.calibration import read_calibration_set
from athe_export.data.shapes import SIZES
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import save_checkpoint
from athe_export.pipeline import run_build
from athe_export.plan import plan_build
from athe_export.recipe import RecipeFile, load_recipe
from athe_export.shipped import copy_recipe, shipped_recipes
from athe_export.training.state import settings_digest
from athe_export.training.train import train_recipe
from tests.conftest import BOTH, ROOT, TINY, SilentWatch, spread_scores, write_recipe
from tests.tools import cli, refused

RECIPES = sorted((ROOT / "recipes" / "baselines").glob("*.yaml"))
GATED = [p for p in RECIPES if load_recipe(p).recipe.checkpoint.path]
SHARED = [p for p in GATED if load_recipe(p).recipe.checkpoint.shared]
MICRO: dict[str, dict[str, Any]] = {
    "deit": {"image_size": 32, "patch": 8, "dim": 24},
    "biformer": {"image_size": 32, "dim": 16, "depth": 2, "biformer": {"depths": [1, 1], "top_k": [1, 4], "regions": 2}},
}

each = pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)


def shrunk(path: Path, folder: Path, inputs: Path, **changes: Any) -> RecipeFile:
    """The recipe at micro size on generated images, untrained; keyword arguments replace top-level keys."""
    document = yaml.safe_load(path.read_text())
    document["model"] |= MICRO[document["model"]["arch"]]
    document |= {"data": TINY["data"], "checkpoint": {"random_seed": 3}, "parity": TINY["parity"]}
    for kind in ("dense", "adaptive", "router"):
        for phase in document["train"].get(kind, []):
            phase |= {"batch_size": 8, "images": 16}
    document["train"] |= {"images": 64, "watch_images": 16} | ({"router_images": 16} if "router" in document else {})
    if "router" in document:
        document["router"] |= {"image_size": 32}
    (folder / "calibration.yaml").write_bytes((inputs / "calibration.yaml").read_bytes())
    return load_recipe(write_recipe(folder, document | changes))


@each
def test_a_baseline_builds_for_both_targets_and_says_whether_it_is_trained(path: Path) -> None:
    file = load_recipe(path)
    plan = plan_build(file, Path("out"), None, None)
    assert plan["targets"].keys() == {"onnx", "litert"} and plan["gated"] == (path in GATED)
    assert file.recipe.name == path.stem
    (summary,) = (r.summary for r in shipped_recipes() if r.path.resolve() == path.resolve())
    assert ("random weights" in summary) == (path not in GATED)


@pytest.mark.parametrize("path", [p for p in GATED if p not in SHARED], ids=lambda p: p.stem)
def test_a_baseline_with_weights_of_its_own_pins_them_and_their_metrics_are_of_its_settings(path: Path) -> None:
    file = load_recipe(path)
    assert file.recipe.checkpoint.path is not None
    weights = file.resolve(file.recipe.checkpoint.path)
    metrics = json.loads(weights.with_suffix(".metrics.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == file.recipe.checkpoint.sha256 == metrics["checkpoint_sha256"]
    assert metrics["complete"] and metrics["settings_sha256"] == settings_digest(file.recipe)


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.stem)
def test_a_baseline_on_another_recipes_checkpoint_pins_it_and_never_trains_over_it(path: Path) -> None:
    file = load_recipe(path)
    assert file.recipe.checkpoint.path is not None
    weights = file.resolve(file.recipe.checkpoint.path)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == file.recipe.checkpoint.sha256
    error = refused(2, "recipe", "train", path)
    assert error["where"] == "checkpoint.shared" and "--output" in error["remedy"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == file.recipe.checkpoint.sha256


@each
def test_a_baseline_trains(path: Path, tiny_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of its plan, of all but the router."""
    monkeypatch.setattr("athe_export.data.shapes.SIZES", SIZES | {"holdout": 40, "test": 40})
    file = shrunk(path, tmp_path, tiny_inputs)
    result = train_recipe(file, output=tmp_path / "a.safetensors", max_minutes=0, device="cpu", report=lambda line: None)
    assert not result.complete and result.path.name == "a.partial.safetensors"


def test_a_copied_baseline_finds_its_files(tmp_path: Path) -> None:
    copied = copy_recipe("baselines/evit_cifar100", tmp_path)
    recipe = load_recipe(tmp_path / "recipes" / "baselines" / "evit_cifar100.yaml")
    assert recipe.recipe.checkpoint.path is not None
    assert {recipe.resolve(recipe.recipe.checkpoint.path), recipe.resolve(recipe.recipe.data.calibration)} <= set(
        copied.files
    )


@pytest.fixture(scope="module")
def scored(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of three branches, each with the scorer of a baseline, built and gated for both targets on the tiny weights."""
    folder = tmp_path_factory.mktemp("scored")
    (path,) = (p for p in RECIPES if p.stem == "three_branches_cifar100")
    prune = [{"after_blocks": 1, "keep": 0.5}, {"after_blocks": 2, "keep": 0.7}]
    branches = [{"name": s, "heads": 3, "prune": prune, "scorer": s} for s in ("evit", "ats", "dynamicvit")]
    router = {"arch": "mobilenet_v1_0.25", "image_size": 32, "threshold": {"share_simple": 0.34}}
    changes = {
        "model": TINY["model"],
        "branches": branches,
        "router": router,
        "targets": BOTH | {"litert": BOTH["litert"] | {"quantize": {"keep_float": ["router.*"]}}},
        "checkpoint": {"path": "a.safetensors"},
    }
    file = shrunk(path, folder, tiny_inputs, **changes)
    model = AtheModel(file.recipe)
    model.initialise(3)
    spread_scores(model, file.recipe, read_calibration_set(folder / "calibration.yaml").ids)
    save_checkpoint(folder / "a.safetensors", model, {})  # a file of weights is gated, whatever they are
    run_build(file, folder / "bundle", SilentWatch())
    return folder / "bundle"


def test_evit_ats_and_dynamicvit_branches_pass_the_gate_in_both_runtimes_as_static_graphs(scored: Path) -> None:
    manifest = open_bundle(scored).manifest
    assert manifest.verdict == "pass" and manifest.parity is not None
    assert [(b.name, b.scorer, [p.tokens for p in b.prune]) for b in manifest.branches] == [
        ("evit", "evit", [8, 6]), ("ats", "ats", [8, 6]), ("dynamicvit", "dynamicvit", [8, 6]),
    ]  # fmt: skip
    assert set(manifest.parity["targets"]) == {"onnx", "onnx/fp32", "litert", "litert/fp32"}


def test_the_fp32_graphs_keep_the_tokens_that_torch_keeps(scored: Path) -> None:
    """EViT's fused token among them, where the second stage keeps it."""
    parity = open_bundle(scored).manifest.parity
    assert parity is not None
    rows = [h for h in parity["hops"] if h["from"] == "torch fp32" and h["precision"] == "fp32" and h["path"] != "routed"]
    assert {(h["target"], h["path"]) for h in rows} == {
        (t, s) for t in ("onnx", "litert") for s in ("evit", "ats", "dynamicvit")
    }
    assert all(h["images"] > 0 and h["token_overlap"] == 1 for h in rows)


def test_xnnpack_takes_all_of_them_but_the_choice_of_tokens_and_looking_them_up(scored: Path) -> None:
    for graph in (g for g in open_bundle(scored).manifest.graphs if g.target == "litert" and g.role != "router"):
        assert graph.xnnpack is not None
        outside = {op.split()[0] for op in graph.xnnpack["outside"]}
        assert graph.xnnpack["partitions"] == 3 and outside == {"TOPK_V2", "RESHAPE", "EMBEDDING_LOOKUP"}, graph.role


def test_three_branches_are_routed_and_run(scored: Path, photo: Path) -> None:
    found = cli("run", scored, photo, "--json")
    assert found.code == 0 and found.document["results"][0]["branch"] in ("evit", "ats", "dynamicvit")
    for name in ("evit", "ats", "dynamicvit"):
        assert cli("run", scored, photo, "--branch", name, "--json").document["results"][0]["branch"] == name
