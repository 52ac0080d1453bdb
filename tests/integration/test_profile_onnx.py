"""scripts/profile_onnx.py on the tiny bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts/profile_onnx.py"


def test_every_kind_of_operation_has_its_time_and_an_int8_graph_multiplies_in_int8(built: Path) -> None:
    line = [sys.executable, SCRIPT, built, "--role", "simple", "--runs", "3", "--json"]
    shown = subprocess.run(line, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    kinds = {row["kind"]: row for row in json.loads(shown.stdout)["kinds"]}
    assert {"QGemm", "QuantizeLinear", "Gelu", "LayerNormalization"} <= set(kinds)
    assert all(row["us"] > 0 and row["calls"] >= 1 for row in kinds.values())
    assert abs(sum(row["share"] for row in kinds.values()) - 1) < 1e-6


def test_a_graph_that_is_not_there_is_refused_with_those_that_are(built: Path) -> None:
    shown = subprocess.run([sys.executable, SCRIPT, built, "--role", "dense"], capture_output=True, text=True)
    assert shown.returncode == 2 and "simple int8" in shown.stderr and "Traceback" not in shown.stderr
