"""The wheel, outside the checkout: it carries the recipes, their calibration sets and checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked where no checkout is."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def athe_export(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    program = "import sys, athe_export.cli as c; assert c.__file__.startswith(sys.argv.pop(1)), c.__file__; c.main()"
    command = [sys.executable, "-c", program, str(site), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_lists_copies_and_builds_the_quickstart(site: Path, tmp_path: Path) -> None:
    listed = athe_export(site, tmp_path, "recipes", "list", "--json")
    assert {r["name"] for r in json.loads(listed.stdout)["recipes"]} == {p.stem for p in (ROOT / "recipes").glob("*.yaml")}
    copied = athe_export(site, tmp_path, "recipes", "copy", "quickstart", ".")
    assert copied.returncode == 0, copied.stderr
    recipe = tmp_path / "recipes" / "quickstart.yaml"
    text = recipe.read_text()
    assert "limit: null" in text
    recipe.write_text(text.replace("limit: null", "limit: 2000").replace("max_top1_drop_pp: 0.7", "max_top1_drop_pp: 2"))
    built = athe_export(site, tmp_path, "build", "recipes/quickstart.yaml", "--json")
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "artifacts" / "bundles" / "quickstart" / "manifest.json").exists()


def test_the_wheel_carries_no_training_state_and_no_images(site: Path) -> None:
    names = [p.name for p in site.rglob("*") if p.is_file()]
    assert not [n for n in names if n.endswith((".pt", ".csv", ".png", ".npz"))]
