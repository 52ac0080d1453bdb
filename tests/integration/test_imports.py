"""What may import what: a device has numpy, Pillow and one engine, and the runtime must be content with that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from athe_export.data.shapes import Shapes
from athe_export.dependencies import JOBS, installed, require
from tests.tools import Outcome, blocked_python, command, error_of, python, require_one_message

BUILD_ONLY = (
    *("torch", "torchao", "onnx", "onnxsim", "onnxscript", "onnx_ir", "safetensors", "filelock"),
    *("litert_torch", "litert_converter", "ai_edge_quantizer", "flatbuffers", "jax"),
)
NOT_ON_A_DEVICE = (*BUILD_ONLY, "yaml")
INTERFACE = ("typer", "rich", "yaml", "platformdirs")


def _imported_by(code: str) -> set[str]:
    """Top-level names in sys.modules after running code in a fresh process."""
    done = python(code + "\nimport sys, json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_running_a_bundle_imports_neither_the_build_nor_the_interface(built: Path, photo: Path) -> None:
    code = (
        f"from athe_export.runtime.predictor import Predictor; print(Predictor.load({str(built)!r}).predict({str(photo)!r}))"
    )
    found = _imported_by(code)
    assert {"numpy", "PIL", "onnxruntime"} <= found
    assert not found & {*BUILD_ONLY, *INTERFACE}


def test_running_a_bundle_makes_no_dataclass_of_ours_which_a_start_would_wait_for(built: Path, photo: Path) -> None:
    code = f"""
import json, sys
from athe_export.runtime.predictor import Predictor
Predictor.load({str(built)!r}).predict({str(photo)!r})
ours = [m for name, m in sys.modules.items() if name.startswith("athe_export")]
print(json.dumps(sorted({{str(v) for m in ours for v in vars(m).values() if hasattr(v, "__dataclass_fields__")}})))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_verifying_a_bundle_imports_neither_the_build_nor_the_interface(built: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from athe_export.verify import verify_bundle
assert verify_bundle(Path({str(built)!r}), Path({str(tmp_path)!r})).verdict == "pass"
"""
    assert not _imported_by(code) & {*BUILD_ONLY, *INTERFACE}


def test_the_command_line_starts_without_torch_and_without_an_engine() -> None:
    found = _imported_by("import athe_export.cli")
    assert not found & {*BUILD_ONLY, "onnxruntime"}


def test_reading_a_recipe_imports_no_torch() -> None:
    found = _imported_by("import athe_export.recipe, athe_export.plan, athe_export.shipped, athe_export.data.source")
    assert not found & {*BUILD_ONLY, "onnxruntime"}


def test_the_bundle_format_needs_the_standard_library_alone() -> None:
    found = _imported_by("import athe_export.bundle.reader, athe_export.bundle.manifest")
    assert not found & {*BUILD_ONLY, *INTERFACE, "numpy", "PIL", "onnxruntime"}


def test_the_time_of_a_start_begins_before_anything_that_the_runtime_needs() -> None:
    found = _imported_by("import athe_export.bench.first_answer")
    assert not found & {"numpy", "PIL", "pathlib", "hashlib", "threading", "typing", "mmap"}


def test_without_torch_the_runtime_verifies_and_runs_a_bundle(built: Path, photo: Path) -> None:
    code = f"""
from pathlib import Path
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch is not blocked")
from athe_export.runtime.predictor import Predictor
from athe_export.verify import verify_bundle
assert verify_bundle(Path({str(built)!r})).verdict == "pass"
print(Predictor.load({str(built)!r}).predict({str(photo)!r}).label)
"""
    done = blocked_python(code, BUILD_ONLY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in Shapes().class_names


@pytest.mark.parametrize("verb", ["verify", "inspect", "run"])
def test_without_the_build_extra_the_device_verbs_work(built: Path, photo: Path, verb: str) -> None:
    arguments = [verb, built, *([photo] if verb == "run" else []), "--json"]
    here, there = command(*arguments), command(*arguments, blocked=NOT_ON_A_DEVICE)
    assert (here.code, there.code) == (0, 0), there.err
    assert _without_times(there) == _without_times(here)


def _without_times(outcome: Outcome) -> dict[str, object]:
    document = outcome.document
    for result in document.get("results", []):
        del result["ms"]
    return document


def test_without_torch_a_build_says_what_to_install_and_writes_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny()
    shown = command("build", recipe, "-o", tmp_path / "out" / "bundle", blocked=["torch"])
    require_one_message(shown, 6)
    assert "torch" in shown.err and 'pip install "athe-export[build]"' in shown.err
    assert not (tmp_path / "out").exists()


def test_without_torch_a_dry_run_still_shows_the_plan(tiny: Callable[..., Path]) -> None:
    assert command("build", tiny(), "--dry-run", "--json", blocked=BUILD_ONLY).document["gated"] is True


@pytest.mark.parametrize("words", ["build x.yaml", "train x.yaml", "evaluate x.yaml", "recipes copy quickstart", "schema"])
def test_without_yaml_what_reads_recipes_says_what_to_install(words: str, tmp_path: Path) -> None:
    shown = command(*words.split(), blocked=["yaml"], cwd=tmp_path)
    require_one_message(shown, 6)
    assert "to read recipes" in shown.err and 'pip install "athe-export[build]"' in shown.err
    assert not list(tmp_path.iterdir())


def test_without_yaml_recipes_are_listed_all_the_same() -> None:
    assert command("recipes", "list", "--json", blocked=["yaml"]).document == command("recipes", "list", "--json").document


def test_without_onnxruntime_run_says_what_to_install(built: Path, photo: Path) -> None:
    error = error_of(command("run", built, photo, "--json", blocked=["onnxruntime"]), 6, "missing_dependency")
    assert "onnxruntime" in error["message"]
    assert error["remedy"] == 'pip install "athe-export[onnx]"'


def test_an_engine_that_is_installed_but_broken_is_said(built: Path, photo: Path, tmp_path: Path) -> None:
    # a package that can be found and fails as it is imported, like a wheel for another processor
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('libonnxruntime.so: wrong ELF class')")
    done = python(
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from athe_export.cli import main; main()",
        tmp_path, "run", built, photo,
    )  # fmt: skip
    require_one_message(Outcome(done.returncode, done.stdout, done.stderr), 6)
    assert "wrong ELF class" in done.stderr and "athe-export[onnx]" in done.stderr


def test_doctor_names_what_is_missing_and_the_command_that_mends_it() -> None:
    document = command("doctor", "--json", blocked=["torch", "onnxruntime"]).document
    jobs = {j["job"]: j for j in document["jobs"]}
    assert jobs["run and verify bundles with ONNX Runtime"] == {
        "job": "run and verify bundles with ONNX Runtime",
        "ready": False,
        "missing": ["onnxruntime"],
        "remedy": 'pip install "athe-export[onnx]"',
    }
    assert jobs["run and verify bundles with LiteRT"]["ready"]
    assert "torch" in jobs["build bundles"]["missing"]
    assert all(j["ready"] for j in command("doctor", "--json").document["jobs"])


def test_a_package_is_installed_exactly_where_it_can_be_found() -> None:
    assert installed("numpy") and not installed("a_package_of_no_one")
    done = blocked_python("from athe_export.dependencies import installed; print(installed('numpy'))", ["numpy"])
    assert done.stdout.strip() == "False", done.stderr


def test_every_job_can_be_required_where_everything_is_installed() -> None:
    for job in JOBS:
        require(job.name)


def test_a_job_that_cannot_be_done_lists_every_missing_package() -> None:
    code = """
from athe_export.dependencies import require
from athe_export.errors import MissingDependency
try:
    require("build bundles")
except MissingDependency as error:
    print(error.what, "|", error.remedy)
"""
    said = blocked_python(code, ["torch", "onnxsim"]).stdout
    assert "onnxsim, torch" in said and 'pip install "athe-export[build]"' in said
