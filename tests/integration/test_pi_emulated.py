"""A user land of the Raspberry Pi 4, made and used. Runs where qemu and mmdebstrap are installed; .ci/run shows more, by
scripts/check_pi.sh, and says so where they are not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PI = ROOT / "scripts" / "pi"
GRAPH = ROOT / "tests" / "bundles" / "v1" / "tiny" / "onnx" / "simple.int8.onnx"

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(
        not (shutil.which("qemu-aarch64") and shutil.which("mmdebstrap")),
        reason="needs qemu-user and mmdebstrap; on Debian, as root: apt-get install qemu-user mmdebstrap",
    ),
]


def run(*line: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in line], capture_output=True, text=True)


@pytest.fixture(scope="module")
def land(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("land")
    made = run(PI / "setup.sh", folder, "bookworm", "numpy", "onnxruntime")
    if made.returncode == 7:
        pytest.skip(made.stderr)
    assert made.returncode == 0, made.stderr
    return folder


def test_the_control_dies_on_the_emulated_processor(land: Path) -> None:
    found = run(PI / "check_cpu_model.sh", land)
    assert found.returncode == 0, found.stderr


def test_another_processor_cannot_pass_for_a_pi_4(land: Path) -> None:
    wrapper = land / "pi"
    right = wrapper.read_text()
    wrapper.write_text(right.replace("${PI_CPU:-cortex-a72}", "max"))
    try:
        assert "max" in wrapper.read_text()
        found = run(PI / "check_cpu_model.sh", land)
    finally:
        wrapper.write_text(right)
    assert found.returncode == 1 and "says nothing about a Pi 4" in found.stderr


def test_a_graph_takes_the_same_instructions_in_every_process_and_answers_as_here(land: Path) -> None:
    found = run(sys.executable, PI / "count_instructions.py", land, GRAPH, "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    (row,) = document["rows"]
    assert row["agree"] >= 2 and row["instructions"] > 10_000
    assert sum(row["classes"].values()) == row["instructions"]
    assert row["this_machine"] == "bit-equal"
    assert row["engine"] == f"onnxruntime {document['land']['packages']['onnxruntime']}"
