"""Imports point one way, and heavy packages stay where they are admitted; read from the source, not from a run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "athe_export"
# what each part may import of the project, besides itself
ALLOWED = {
    "errors": set(),
    "dependencies": {"errors"},
    "schema": {"dependencies"},
    "preprocessing": {"errors"},
    "bundle": {"errors"},
    "runtime": {"errors", "preprocessing", "bundle", "dependencies"},
    "data": {"errors", "preprocessing", "schema"},
    "parity": {"errors", "preprocessing", "bundle", "runtime", "data"},
    "report": {"bundle", "parity"},
    "bench": {"errors", "preprocessing", "bundle", "runtime", "dependencies"},
    "live": {"errors", "preprocessing", "runtime", "dependencies"},
    "precision": {"errors", "preprocessing", "runtime", "data", "parity", "bench"},
    "deploy": {"errors", "bundle", "runtime", "bench"},
    "evaluation": {
        *("errors", "preprocessing", "bundle", "runtime", "dependencies", "data", "parity", "bench", "report"),
        *("recipe", "plan", "stages"),
    },
    "recipe": {"errors", "schema", "recipe_checks", "model_spec", "train_spec"},
    "model_spec": {"schema"},
    "train_spec": {"schema"},
    "recipe_checks": set(),
    "model": {"errors", "recipe"},
    "branches": {"model", "recipe"},
    "deployed": {"model", "branches", "preprocessing"},
    "targets": {"errors", "recipe", "branches", "preprocessing", "runtime", "bundle"},
    "verify": {"errors", "preprocessing", "bundle", "runtime", "data", "parity"},
}
TORCH = {"torch", "onnxsim", "safetensors"}
TORCH_MAY = {"model", "training", "branches", "deployed", "system", "reference"}
TORCH_MAY_ALSO = {"targets/equality.py", "targets/onnx/export.py", "targets/onnx/simplify.py", "targets/litert/export.py"}
TARGETS = {"onnx", "litert"}
DEVICE_MAY = {"numpy", "PIL", "onnxruntime"}


def imports(path: Path) -> set[str]:
    """Dotted names of every import in a file, those for type checking left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", [f for f in FILES if part_of(f) in ALLOWED], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    own = {name.split(".")[1] for name in imports(path) if name.startswith("athe_export.")}
    assert own - {part, "__version__"} <= ALLOWED[part]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_is_imported_only_where_it_is_admitted(path: Path) -> None:
    if part_of(path) not in TORCH_MAY and path.relative_to(PACKAGE).as_posix() not in TORCH_MAY_ALSO:
        assert not {name.split(".")[0] for name in imports(path)} & TORCH


@pytest.mark.parametrize("part", ["runtime", "bundle", "parity", "bench", "live", "preprocessing", "errors"])
def test_the_device_needs_numpy_pillow_and_its_engine_alone(part: str) -> None:
    import sys

    used = {name.split(".")[0] for f in FILES if part_of(f) == part for name in imports(f)}
    if part == "bundle":
        used.discard("filelock")  # the writer's; reading needs the standard library alone
    if part == "bench":
        used.discard("platformdirs")  # where tune remembers; run does without
    if part == "live":
        used.discard("cv2")  # of --camera alone
    assert used - set(sys.stdlib_module_names) - {"athe_export"} <= DEVICE_MAY


def test_targets_never_import_each_other() -> None:
    for path in (PACKAGE / "targets").rglob("*.py"):
        target = path.relative_to(PACKAGE / "targets").parts[0]
        others = {n.split(".")[2] for n in imports(path) if n.startswith("athe_export.targets.")}
        assert others & TARGETS <= {target}, path  # what they share lies beside them and knows neither
    assert {p.name for p in (PACKAGE / "targets").iterdir() if (p / "__init__.py").exists()} == TARGETS


def test_every_module_is_small_enough_to_read_at_once() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
