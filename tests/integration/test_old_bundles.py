"""Bundles that earlier versions wrote, kept under tests/bundles/: they stay verifiable."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from athe_export.bundle.manifest import SCHEMA_VERSION
from athe_export.data.shapes import Shapes
from athe_export.runtime.predictor import Predictor
from athe_export.verify import verify_bundle
from tests.tools import environment

OLD_BUNDLES = Path(__file__).parent.parent / "bundles"
OLD = sorted(p for p in OLD_BUNDLES.glob("v*/*") if p.is_dir())


def test_there_is_an_old_bundle_of_every_format_version() -> None:
    assert {p.parent.name for p in OLD} == {f"v{n}" for n in range(1, SCHEMA_VERSION + 1)}


@pytest.mark.parametrize("old", OLD, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_an_old_bundle_still_passes_its_self_test_and_its_gate(old: Path, tmp_path: Path) -> None:
    report = verify_bundle(old, tmp_path)
    assert [g.role for g in report.golden if not g.passed] == []
    assert {g.role for g in report.golden} == {"router", "simple", "complex"}
    assert report.parity is not None and report.parity.verdict == "pass"


@pytest.mark.parametrize("old", OLD, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_an_old_bundle_still_classifies(old: Path) -> None:
    predictor = Predictor.load(old)
    answers = [predictor.predict(Shapes().image("test", i)) for i in range(20)]
    assert {a.branch for a in answers} == {"simple", "complex"}
    assert all(a.label in Shapes().class_names for a in answers)


def test_on_a_processor_without_vnni_reduced_weights_give_the_same_bits() -> None:
    """Full 8-bit weights saturate there; what `reduce_range` promises is seen on an emulated processor of 2013."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or platform.machine() != "x86_64":
        pytest.skip("there is no qemu-x86_64 here, so an older processor cannot be emulated")
    run = "from athe_export.cli import main; main()"
    line = [emulator, "-cpu", "Haswell", sys.executable, "-c", run, "verify", str(OLD_BUNDLES / "v1" / "tiny"), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert [g["bit_equal"] for g in json.loads(done.stdout)["golden"]] == [True, True, True]
