"""Shared fixtures: a tiny ATHE model on generated images, built for real once a session."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from tests.tools import Outcome, command, graph_content, output_of

if TYPE_CHECKING:
    from athe_export.branches import BranchGraphSource
    from athe_export.model.athe import AtheModel
    from athe_export.preprocessing import Pixels, Preprocessing, Tensor
    from athe_export.recipe import Recipe
    from athe_export.targets.litert.graph import LitertGraph

ROOT = Path(__file__).parent.parent
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve other builds of the cores

TINY: dict[str, Any] = {
    "schema": 1,
    "name": "tiny",
    "model": {"arch": "deit", "image_size": 32, "patch": 8, "dim": 24, "depth": 3, "heads": 3, "classes": 100},
    "checkpoint": {"path": "tiny.safetensors"},
    "data": {
        "dataset": "shapes",
        "preprocessing": {"source_size": 32},
        "calibration": "calibration.yaml",
        "gate": {"split": "test", "limit": 60},
    },
    "router": {"arch": "mobilenet_v1_0.25", "image_size": 32, "threshold": {"share_simple": 0.5}},
    "branches": [
        {"name": "simple", "prune": [{"after_blocks": 1, "keep": 0.4}], "heads": 1},
        {"name": "complex", "prune": [{"after_blocks": 2, "keep": 0.75}], "heads": 3},
    ],
    "targets": {"onnx": {"opset": 20}},
    "share_weights": True,
    # random weights answer at random, so only plumbing can be asked for here; shipped recipes gate real accuracy
    "parity": {"max_top1_drop_pp": 50, "min_agreement": 0.2, "min_router_agreement": 0.9},
}

# every graph that there can be: each target in both precisions
BOTH: dict[str, Any] = {
    "onnx": {"opset": 20, "precisions": ["int8", "fp32"]},
    "litert": {"precisions": ["int8", "fp32"]},
}
# LiteRT alone, the router float, two dense branches: what `BOTH` does not have, on a model as small as can be
LITERT_ONLY: dict[str, Any] = {
    "model": {"arch": "deit", "image_size": 32, "patch": 8, "dim": 16, "depth": 1, "heads": 2, "classes": 100},
    "checkpoint": {"random_seed": 5},
    "branches": [{"name": "simple", "heads": 1}, {"name": "complex", "heads": 2}],
    "targets": {"litert": {"precisions": ["int8", "fp32"], "quantize": {"keep_float": ["router.*"]}}},
}


class SilentWatch:
    """A build's watcher that records stage names."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def progress(self, step: str, done: int, total: int) -> None:
        pass


def write_recipe(folder: Path, content: dict[str, Any]) -> Path:
    """Writes `content` as folder/recipe.yaml and gives its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """The data root that holds the real CIFAR-100; tests of it are skipped where there is none."""
    root = os.environ.get("ATHE_DATA_ROOT")
    if not root or not (Path(root) / "cifar-100-python").is_dir():
        pytest.skip("needs the real CIFAR-100: set ATHE_DATA_ROOT to a folder that holds cifar-100-python/")
    return Path(root)


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml, tiny.safetensors (random weights, as a file) and calibration.yaml."""
    import dataclasses

    import torch

    from athe_export.data.calibration import make_calibration_set
    from athe_export.data.shapes import Shapes
    from athe_export.model.athe import AtheModel
    from athe_export.model.checkpoint import save_checkpoint
    from athe_export.recipe import load_recipe

    folder = tmp_path_factory.mktemp("tiny")
    path = write_recipe(folder, TINY)
    made = make_calibration_set(Shapes(), "train", 80, 0, "holdout")
    (folder / "calibration.yaml").write_text(yaml.safe_dump(dataclasses.asdict(made) | {"ids": list(made.ids)}))
    model = AtheModel(load_recipe(path).recipe)
    model.initialise(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # biases of zero would be folded away, and no trained model has them
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    spread_scores(model, load_recipe(path).recipe, made.ids)
    save_checkpoint(folder / "tiny.safetensors", model, {})
    return folder


def spread_scores(model: AtheModel, recipe: Recipe, ids: Iterable[int]) -> None:
    """Makes the router tell images apart as a trained one does: of random weights it hardly does, and not at all in int8."""
    import torch

    from athe_export.data.shapes import Shapes
    from athe_export.preprocessing import Preprocessing

    preprocessing, shapes, router = Preprocessing(**vars(recipe.data.preprocessing)), Shapes(), model.router
    assert router is not None and recipe.router is not None
    size = recipe.router.image_size
    images = [preprocessing.tensor(preprocessing.source(shapes.image("train", i)), size) for i in ids]
    batch = torch.from_numpy(np.concatenate(images))
    with torch.no_grad():
        router.eval()
        router.classifier.weight.mul_(2 / router.logit(batch).std())
        router.classifier.bias.sub_(router.logit(batch).mean())


@pytest.fixture
def tiny(tiny_inputs: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a private copy of the tiny inputs; keyword arguments replace top-level recipe keys. Gives the recipe."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "recipe"
        shutil.copytree(tiny_inputs, folder, dirs_exist_ok=True)
        return write_recipe(folder, TINY | changes)

    return make


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A generated image at another size and shape than the tiny recipe's, as a JPEG."""
    from PIL import Image

    from athe_export.data.shapes import Shapes

    Image.fromarray(Shapes().image("test", 4)).resize((120, 90)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root; generated images need nothing of it."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture(scope="session")
def built(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's bundle, really exported, quantized and gated; copy it before changing it."""
    from athe_export.pipeline import run_build
    from athe_export.recipe import load_recipe

    output = tmp_path_factory.mktemp("built") / "tiny"
    run_build(load_recipe(tiny_inputs / "recipe.yaml"), output, SilentWatch())
    return output


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A private copy of the built bundle, free to be damaged."""
    copy = tmp_path / "bundle"
    shutil.copytree(built, copy)
    return copy


@pytest.fixture(scope="session")
def built_both(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's bundle for both targets, all graphs in both precisions; copy it before changing it."""
    from athe_export.pipeline import run_build
    from athe_export.recipe import load_recipe

    folder = tmp_path_factory.mktemp("both")
    shutil.copytree(tiny_inputs, folder, dirs_exist_ok=True)
    parity = {**TINY["parity"], "min_router_agreement": 0.8}  # a router of random weights suffers from int8
    recipe = write_recipe(folder, TINY | {"targets": BOTH, "parity": parity})
    run_build(load_recipe(recipe), folder / "bundle", SilentWatch())
    return folder / "bundle"


@pytest.fixture
def bundle_both(built_both: Path, tmp_path: Path) -> Path:
    """A private copy of the bundle for both targets."""
    copy = tmp_path / "bundle"
    shutil.copytree(built_both, copy)
    return copy


@pytest.fixture(scope="session")
def litert_only(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A bundle without ONNX, and what the process that built it said."""
    folder = tmp_path_factory.mktemp("litert")
    (folder / "calibration.yaml").write_bytes((tiny_inputs / "calibration.yaml").read_bytes())
    recipe = write_recipe(folder, TINY | LITERT_ONLY)
    return folder / "bundle", command("build", recipe, "-o", folder / "bundle", "--json")


@pytest.fixture(scope="session")
def tiny_preprocessing(tiny_inputs: Path) -> Preprocessing:
    """As the tiny recipe has it."""
    from athe_export.preprocessing import Preprocessing
    from athe_export.recipe import load_recipe

    return Preprocessing(**vars(load_recipe(tiny_inputs / "recipe.yaml").recipe.data.preprocessing))


@pytest.fixture(scope="session")
def real_pixels(tiny_preprocessing: Preprocessing) -> tuple[Pixels, ...]:
    """Images of the generated test split as the tiny model's graphs take them, uint8 [1, 32, 32, 3]."""
    from athe_export.data.shapes import Shapes

    shapes = Shapes()
    return tuple(tiny_preprocessing.source(shapes.image("test", i))[None] for i in range(24))


@pytest.fixture(scope="session")
def real_images(tiny_preprocessing: Preprocessing, real_pixels: tuple[Pixels, ...]) -> tuple[Tensor, ...]:
    """The same as the tiny model takes them in torch, float32 [1, 3, 32, 32]."""
    return tuple(tiny_preprocessing.tensor(pixels[0], 32) for pixels in real_pixels)


@pytest.fixture(scope="session")
def tiny_sources(tiny_inputs: Path, built_both: Path) -> dict[str, BranchGraphSource]:
    """The modules that the tiny bundle's graphs were made from, by role."""
    from athe_export.branches import graph_sources
    from athe_export.bundle.reader import open_bundle
    from athe_export.model.checkpoint import build_model, read_checkpoint
    from athe_export.recipe import load_recipe

    path = tiny_inputs / "tiny.safetensors"
    model, _ = build_model(load_recipe(tiny_inputs / "recipe.yaml").recipe, read_checkpoint(path, None), str(path))
    kept = next(b.head_indices for b in open_bundle(built_both).manifest.branches if b.name == "simple")
    assert kept is not None  # measured in the build: the checkpoint has no rank
    model.head_rank = tuple((*best, *sorted({0, 1, 2} - set(best))) for best in kept)
    return {source.role: source for source in graph_sources(model.eval())}


@pytest.fixture(scope="session")
def litert_graphs(built_both: Path) -> dict[str, LitertGraph]:
    """The tiny bundle's fp32 TFLite graphs by role, so that only its build converts them."""
    from athe_export.targets.litert.graph import LitertGraph

    roles = ("router", "simple", "complex")
    return {r: LitertGraph(r, "fp32", graph_content(built_both, f"litert/{r}.fp32.tflite")) for r in roles}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv into which pip installed the wheel; its other packages are those of this interpreter."""
    folder = tmp_path_factory.mktemp("wheel")
    output_of(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    venv.create(folder / "venv", symlinks=True)
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    output_of(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    # After pip, which would take the checkout's install for one of this venv. The .pth file of that one is not followed,
    # being in a folder that a .pth file names.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"
