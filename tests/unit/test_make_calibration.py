"""Making a calibration set from the shell, without torch: the set is the one a build accepts, a refusal is one message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from athe_export.data.calibration import check_calibration_set, read_calibration_set
from athe_export.data.folder import ImageFolder
from tests.tools import blocked_python, environment

RUN = "import runpy; runpy.run_module('athe_export.data.make_calibration', run_name='__main__')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six different images in `train`, of which one stands in `val` too."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    images = [Image.fromarray(random.randint(0, 256, (8, 8, 3), np.uint8)) for _ in range(6)]
    for split, chosen in (("train", images), ("val", images[2:3])):
        (root / split / "thing").mkdir(parents=True)
        for index, image in enumerate(chosen):
            image.save(root / split / "thing" / f"{index}.png")
    return root


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "athe_export.data.make_calibration", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)


def test_a_set_is_made_without_torch_and_is_one_that_a_build_accepts(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "set.yaml"
    arguments = ("folder", 5, output, "--folder", folder, "--avoid-split", "val")
    done = blocked_python(RUN, ["torch", "safetensors", "onnxruntime", "typer"], *arguments)
    assert done.returncode == 0, done.stderr
    assert "5 images of folder/train, seed 0" in done.stdout
    found = read_calibration_set(output)
    assert found.ids == (0, 1, 3, 4, 5), "the image that stands in val is not passed over"
    check_calibration_set(found, output, ImageFolder(folder), "val", 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("shapes", "many", "set.yaml"), 2, "invalid int value: 'many'"),
        (("folder", 5, "set.yaml"), 2, "a folder dataset needs --folder"),
        (("folder", 5, "set.yaml", "--folder", "FOLDER", "--seed", -1), 2, "--seed must be 0 to 4294967295"),
        (("folder", 5, "set.yaml", "--folder", "FOLDER"), 2, "folder has no split 'test'\n  at: --avoid-split"),
        (("folder", 6, "set.yaml", "--folder", "FOLDER", "--avoid-split", "val"), 2, "has 5 usable images, 6 were asked"),
        (("folder", 5, "set.yaml", "--folder", "nowhere"), 6, "there is no image folder\n  at: nowhere"),
        (("folder", 5, os.devnull + "/set.yaml", "--folder", "FOLDER", "--avoid-split", "val"), 7, "Not a directory"),
    ],
)
def test_a_set_that_cannot_be_made_is_one_message_and_a_documented_code(
    arguments: tuple[object, ...], code: int, said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = make(*(folder if a == "FOLDER" else a for a in arguments))
    assert done.returncode == code, done.stderr
    assert said in done.stderr and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "a file was written"
