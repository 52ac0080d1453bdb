"""Every shipped recipe, copied out of the installed wheel, builds and passes its own gate; CIFAR-100 where it is at hand."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.bundle.reader import open_bundle
from athe_export.errors import CheckpointError
from athe_export.parity.reference import Reference, read_reference
from athe_export.plan import plan_build
from athe_export.recipe import load_recipe
from athe_export.runtime.routing import RouterPolicy
from athe_export.shipped import shipped_recipes
from athe_export.training.state import settings_digest
from athe_export.training.train import train_recipe
from tests.conftest import ROOT
from tests.tools import output_of

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FILES = {p: load_recipe(p) for p in RECIPES}
NAMED = {p: f.resolve(f.recipe.checkpoint.path) for p, f in FILES.items() if f.recipe.checkpoint.path}
TRAINED = [p for p, weights in NAMED.items() if weights.exists()]
TO_TRAIN = [p for p in NAMED if p not in TRAINED]
TARGETS = ("onnx", "litert")
IMAGES = {"quickstart": 6000, "micro_cifar100": 10_000}  # in the gate
LEFT_OUT = ("micro_cifar100",)  # of the wheel: only the smallest checkpoint travels
SELECTION = ["TOPK_V2", "RESHAPE", "EMBEDDING_LOOKUP"]


@dataclass(frozen=True)
class Shipped:
    """A built recipe: what the build printed, and the bundle."""

    document: dict[str, Any]
    bundle: Path

    def reference(self) -> Reference:
        """What the stored weights answered in fp32 on the gate's images."""
        return read_reference(open_bundle(self.bundle).read("reference.npz"), "reference.npz")

    def right(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Whether the reference is right on each gate image: every branch's name, and `routed`."""
        reference, manifest = self.reference(), open_bundle(self.bundle).manifest
        correct = reference.answers() == reference.labels
        assert manifest.router is not None
        chosen = reference.routed(RouterPolicy(manifest.router.bounds["reference"]))
        by_branch = dict(zip((b.name for b in manifest.branches), correct, strict=True))
        return by_branch | {"routed": correct[chosen, np.arange(len(chosen))]}


def build(installed: Path, name: str, folder: Path) -> Shipped:
    """As a user who has the wheel, and from a checkout the weights that do not travel in it."""
    program = installed / "bin" / "athe-export"
    copied = json.loads(output_of(program, "recipes", "copy", name, ".", "--json", cwd=folder))
    assert copied["absent"] == [str(NAMED[ROOT / "recipes" / f"{name}.yaml"].relative_to(ROOT))] * (name in LEFT_OUT)
    for absent in copied["absent"]:
        (folder / absent).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / absent, folder / absent)
    document = json.loads(output_of(program, "build", f"recipes/{name}.yaml", "--json", cwd=folder))
    return Shipped(document, folder / "artifacts" / "bundles" / name)


@pytest.fixture(scope="module")
def quickstart(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return build(installed, "quickstart", tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def micro_cifar100(installed: Path, cifar_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Its data root is in the environment."""
    return build(installed, "micro_cifar100", tmp_path_factory.mktemp("micro_cifar100"))


@pytest.fixture(params=[p.stem for p in TRAINED if p.stem in IMAGES])
def shipped(request: pytest.FixtureRequest) -> Shipped:
    """Every small recipe that is trained, in turn; each is built once, by the fixture of its name. The full-size one has
    tests of its own."""
    found: Shipped = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("path", [p for p in RECIPES if p not in TO_TRAIN], ids=lambda p: p.stem)
def test_a_shipped_recipe_builds_both_targets_and_says_whether_it_is_trained(path: Path) -> None:
    plan = plan_build(FILES[path], Path("out"), None, None)
    assert plan["gated"] == (path in TRAINED)
    assert tuple(plan["targets"]) == TARGETS
    (summary,) = (r.summary for r in shipped_recipes() if r.name == path.stem)
    assert ("random" in summary) == (path not in TRAINED)


@pytest.mark.parametrize("path", TO_TRAIN, ids=lambda p: p.stem)
def test_a_shipped_recipe_without_weights_says_so_and_starts_to_train(path: Path, cifar_root: Path, tmp_path: Path) -> None:
    """One step of its plan: the images, the augmentation and the first phase are as the recipe has them."""
    with pytest.raises(CheckpointError, match="there is no such checkpoint") as caught:
        plan_build(FILES[path], Path("out"), None, None)
    assert "athe-export train" in caught.value.remedy
    (summary,) = (r.summary for r in shipped_recipes() if r.name == path.stem)
    assert "train it first" in summary
    result = train_recipe(
        FILES[path], data_root=cifar_root, output=tmp_path / "a.safetensors", max_minutes=0, report=lambda line: None
    )
    assert not result.complete and result.path.name == "a.partial.safetensors"


@pytest.mark.parametrize("path", TRAINED, ids=lambda p: p.stem)
def test_a_shipped_recipe_reads_and_pins_its_checkpoint(path: Path) -> None:
    file = load_recipe(path)
    assert file.recipe.checkpoint.path is not None
    weights = file.resolve(file.recipe.checkpoint.path)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == file.recipe.checkpoint.sha256
    assert weights.stat().st_size <= 14_000_000


@pytest.mark.parametrize("path", TRAINED, ids=lambda p: p.stem)
def test_the_metrics_are_of_the_shipped_checkpoint_and_of_the_recipes_settings(path: Path) -> None:
    recipe = load_recipe(path).recipe
    metrics = json.loads(NAMED[path].with_suffix(".metrics.json").read_text())
    assert metrics["complete"] and "train" in metrics["command"]
    assert metrics["checkpoint_sha256"] == recipe.checkpoint.sha256
    assert metrics["settings_sha256"] == settings_digest(recipe)


def test_a_shipped_recipe_passes_its_gate_on_every_image(shipped: Shipped) -> None:
    assert shipped.document["verdict"] == "pass"
    parity = shipped.document["parity"]
    assert parity["images"] == IMAGES[shipped.bundle.name]
    assert all(limit["verdict"] == "pass" for limit in parity["limits"])
    assert {limit["name"].split(".")[0] for limit in parity["limits"]} == set(parity["targets"]) >= set(TARGETS)


def test_the_targets_of_a_shipped_recipe_agree(shipped: Shipped) -> None:
    (pair,) = shipped.document["parity"]["between"]
    assert set(pair["targets"]) == set(TARGETS)
    limits = load_recipe(ROOT / "recipes" / f"{shipped.bundle.name}.yaml").recipe.parity
    assert pair["agreement"] >= limits.min_agreement and pair["router_agreement"] >= limits.min_router_agreement


@pytest.mark.parametrize("name", TARGETS)
def test_a_shipped_recipe_uses_all_its_branches(shipped: Shipped, name: str) -> None:
    target = shipped.document["parity"]["targets"][name]
    assert set(target["share"]) == {"simple", "complex"}
    assert min(target["share"].values()) > 0.05


def test_inspect_lists_router_branches_fixed_shapes_int8_coverage_and_digests(shipped: Shipped) -> None:
    manifest = json.loads(output_of(sys.executable, "-m", "athe_export.cli", "inspect", shipped.bundle, "--json"))
    graphs = {(g["target"], g["role"], g["precision"]): g for g in manifest["graphs"]}
    assert {key[:2] for key in graphs} == {(t, role) for t in TARGETS for role in ("router", "simple", "complex")}
    for graph in graphs.values():
        assert all(isinstance(d, int) and d > 0 for t in (*graph["inputs"], *graph["outputs"]) for d in t["shape"])
        content = (shipped.bundle / graph["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == graph["sha256"] and len(content) == graph["bytes"]
        assert len(graph["float_op_names"]) == graph["float_ops"] > 0
    depth = load_recipe(ROOT / "recipes" / f"{shipped.bundle.name}.yaml").recipe.model.depth
    for target in TARGETS:
        simple, complex_ = graphs[target, "simple", "int8"], graphs[target, "complex", "int8"]
        assert simple["int8_ops"] == complex_["int8_ops"] == 4 * depth + 2
        assert simple["mmacs"] < 0.6 * complex_["mmacs"]


def test_xnnpack_takes_all_of_a_shipped_recipe_but_the_choice_of_tokens(shipped: Shipped) -> None:
    graphs = [g for g in open_bundle(shipped.bundle).manifest.graphs if g.target == "litert"]
    assert {g.role for g in graphs} == {"router", "simple", "complex"}
    for graph in graphs:
        assert graph.xnnpack is not None
        outside = [op.split()[0] for op in graph.xnnpack["outside"]]
        assert (graph.xnnpack["partitions"], outside) == ((1, []) if graph.role == "router" else (2, SELECTION))


def test_the_quickstart_is_right_on_nine_of_ten_simple_images(quickstart: Shipped) -> None:
    right, simple = quickstart.right(), quickstart.reference().ids % 2 == 0  # by construction of the set
    assert right["simple"][simple].mean() >= 0.9
    assert right["routed"][simple].mean() >= 0.9


def test_the_micro_models_complex_branch_is_right_on_35_of_100_test_images(micro_cifar100: Shipped) -> None:
    right = micro_cifar100.right()["complex"]
    assert len(right) == 10_000
    assert right.mean() >= 0.35
