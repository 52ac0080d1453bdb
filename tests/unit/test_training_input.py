"""What training refuses before it reads an image, and what a gate takes from a newer writer's manifest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.data.shapes import Shapes
from athe_export.data.source import no_progress
from athe_export.errors import DatasetError, RecipeError, UsageError
from athe_export.parity.reference import read_reference
from athe_export.parity.run import answer_images, run_gate
from athe_export.preprocessing import Pixels
from athe_export.recipe import load_recipe
from athe_export.training.train import train_recipe
from tests.conftest import TINY

PHASE = [{"epochs": 1}]
TRAIN: dict[str, Any] = {"dense": PHASE, "adaptive": PHASE, "router": PHASE}


def quiet(line: str) -> None:
    pass


def test_a_recipe_without_a_train_section_is_refused_wherever_the_output_goes(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no train section"):
        train_recipe(load_recipe(tiny()), output=tmp_path / "a.safetensors", report=quiet)
    assert not (tmp_path / "a.run").exists()


def test_a_plan_without_phases_of_the_backbone_asks_for_weights_to_start_from(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    file = load_recipe(tiny(train={"dense": [], "adaptive": [], "router": PHASE}))
    with pytest.raises(UsageError, match="no phase trains the backbone") as caught:
        train_recipe(file, output=tmp_path / "a.safetensors", report=quiet)
    assert "--init" in caught.value.remedy and not (tmp_path / "a.run").exists()


def test_an_unknown_device_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no device 'gpu'"):
        train_recipe(load_recipe(tiny(train=TRAIN)), output=tmp_path / "a.safetensors", device="gpu", report=quiet)


def test_a_dataset_without_a_split_that_training_needs_is_refused_at_the_start(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for split in ("train", "holdout"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "images" / split / name / "1.png")
    data = TINY["data"] | {"dataset": "folder", "path": str(tmp_path / "images")}
    with pytest.raises(RecipeError, match="folder has no split 'test'"):
        train_recipe(load_recipe(tiny(data=data, train=TRAIN)), output=tmp_path / "a.safetensors", report=quiet)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"dense": [], "adaptive": []}, "train: holds no phase"),
        (TRAIN | {"crop_padding": 32}, "train.crop_padding: 32 pixels cannot be reflected"),
        (TRAIN | {"adaptive": []}, "train.adaptive: at least one phase is needed before the router's"),
    ],
)
def test_a_train_section_that_cannot_be_carried_out_is_refused(
    tiny: Callable[..., Path], train: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(tiny(train=train))


def test_router_phases_without_a_router_are_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"train\.router: there is no router to train"):
        load_recipe(tiny(router=None, branches=TINY["branches"][1:], train=TRAIN))


def test_a_limit_of_a_newer_writer_is_ignored_by_the_gate(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "bundle")
    opened = open_bundle(tmp_path / "bundle")
    gate = json.loads(json.dumps(opened.manifest.gate))
    gate["limits"]["min_something"] = 1.0
    newer = Bundle(opened.path, opened.manifest._replace(gate=gate))
    reference = read_reference(opened.read("reference.npz"), "reference.npz")
    report = run_gate(newer, reference, Shapes(), newer.manifest.systems, no_progress)
    assert opened.manifest.parity is not None
    assert report.to_json()["limits"] == opened.manifest.parity["limits"]


def test_answers_do_not_depend_on_how_many_cpus_share_the_images(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(built)
    reference = read_reference(opened.read("reference.npz"), "reference.npz")
    steps: list[tuple[int, int]] = []
    found = []
    for cpus in (1, 3):
        monkeypatch.setattr(os, "process_cpu_count", lambda cpus=cpus: cpus, raising=False)
        answers = answer_images(
            opened, reference, Shapes(), opened.manifest.systems, lambda step, done, of: steps.append((done, of))
        )
        found.append(answers)
    assert found[0].keys() == found[1].keys() == set(opened.manifest.systems)
    for system, alone in found[0].items():
        for name in ("branch", "logits", "on_reference_route"):
            assert np.array_equal(getattr(alone, name), getattr(found[1][system], name)), (system, name)
    images = len(reference.ids)
    assert steps[-1] == (images, images) and all(of == images for _, of in steps)


def test_an_image_that_cannot_be_read_ends_the_gate_with_its_own_error(built: Path) -> None:
    class Damaged(Shapes):
        def image(self, split: str, index: int) -> Pixels:
            if index == last:
                raise DatasetError(f"image {index} is damaged", where="here")
            return super().image(split, index)

    opened = open_bundle(built)
    reference = read_reference(opened.read("reference.npz"), "reference.npz")
    last = int(reference.ids[-1])
    with pytest.raises(DatasetError, match=f"image {last} is damaged"):
        run_gate(opened, reference, Damaged(), opened.manifest.systems, no_progress)
