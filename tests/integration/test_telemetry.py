"""Running a bundle leaves nothing behind in the user's home: ONNX Runtime's telemetry is off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLASSIFY = """
import sys
import time

import numpy as np

from athe_export.runtime.predictor import Predictor

Predictor.load(sys.argv[1], target="onnx").predict(np.zeros((32, 32, 3), np.uint8))
time.sleep(2)  # the telemetry thread writes its files about then
"""


def test_classifying_with_onnx_runtime_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))} | {"HOME": str(tmp_path)}
    bundle = ROOT / "tests" / "bundles" / "v1" / "tiny"
    subprocess.run([sys.executable, "-c", CLASSIFY, bundle], env=env, cwd=ROOT, check=True, capture_output=True)
    assert list(tmp_path.rglob("*")) == []
