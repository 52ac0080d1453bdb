"""Shared fixtures: a tiny ATHE model on generated images, built for real once a session."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import output_of

ROOT = Path(__file__).parent.parent

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
    # random weights answer at random, so only plumbing can be asked for here; shipped recipes gate real accuracy
    "parity": {"max_top1_drop_pp": 50, "min_agreement": 0.2, "min_router_agreement": 0.9},
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
    save_checkpoint(folder / "tiny.safetensors", model, {})
    return folder


@pytest.fixture
def tiny(tiny_inputs: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a private copy of the tiny inputs; keyword arguments replace top-level recipe keys. Gives the recipe."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "recipe"
        shutil.copytree(tiny_inputs, folder, dirs_exist_ok=True)
        return write_recipe(folder, TINY | changes)

    return make


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
