"""The wheel, installed outside the checkout. That it builds the shipped recipes: tests/recipes/test_shipped.py."""

from __future__ import annotations

import json
from pathlib import Path

import athe_export
from tests.conftest import ROOT
from tests.tools import listing, output_of


def test_the_installed_program_lists_the_recipes_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(output_of(installed / "bin" / "athe-export", "recipes", "list", "--json", cwd=tmp_path))["recipes"]
    assert {r["name"] for r in listed} == {
        p.relative_to(ROOT / "recipes").with_suffix("").as_posix() for p in (ROOT / "recipes").rglob("*.yaml")
    }
    assert all(Path(r["path"]).is_relative_to(installed) for r in listed), "the checkout's recipes were listed"


def test_a_copied_recipe_has_its_calibration_set_and_checkpoint_beside_it(installed: Path, tmp_path: Path) -> None:
    output_of(installed / "bin" / "athe-export", "recipes", "copy", "quickstart", ".", cwd=tmp_path)
    copied = listing(tmp_path)
    assert set(copied) == {
        "recipes/quickstart.yaml",
        "calibration/shapes_256.yaml",
        "artifacts/checkpoints/quickstart.safetensors",
    }
    assert all(listing(ROOT / Path(name).parent)[Path(name).name] == digest for name, digest in copied.items())


def test_the_wheel_leaves_out_the_full_size_checkpoint_and_a_copy_says_so(installed: Path, tmp_path: Path) -> None:
    program = installed / "bin" / "athe-export"
    found = json.loads(output_of(program, "recipes", "copy", "deit_tiny_cifar100", ".", "--json", cwd=tmp_path))
    assert found["absent"] == ["artifacts/checkpoints/athe_deit_tiny_cifar100.safetensors"]
    assert set(listing(tmp_path)) == set(found["copied"]) and (ROOT / found["absent"][0]).exists()
    said = output_of(program, "recipes", "copy", "deit_tiny_cifar100", "again", cwd=tmp_path)
    assert "not in this package" in said and "athe-export train" in said


def test_the_wheel_states_its_version_licence_and_extras_and_needs_no_torch(installed: Path, tmp_path: Path) -> None:
    code = "import json, importlib.metadata as m; print(json.dumps(m.metadata('athe-export').json))"
    found = json.loads(output_of(installed / "bin" / "python", "-c", code, cwd=tmp_path))
    assert (found["version"], found["license_expression"]) == (athe_export.__version__, "Apache-2.0")
    assert set(found["provides_extra"]) == {"onnx", "litert", "camera", "build", "dev"}
    assert not [
        r for r in found["requires_dist"] if "extra ==" not in r and any(x in r for x in ("torch", "onnx", "litert"))
    ]
    assert len([r for r in found["requires_dist"] if "extra == 'litert'" in r]) == 1


def test_the_wheel_carries_no_training_state_no_partial_run_and_no_images(installed: Path) -> None:
    (package,) = installed.glob("lib/python*/site-packages/athe_export")
    names = [p.name for p in package.rglob("*") if p.is_file()]
    assert "quickstart.safetensors" in names
    assert not [n for n in names if n.endswith((".pt", ".csv", ".png", ".npz", ".part")) or ".partial." in n]
