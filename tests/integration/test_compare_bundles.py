"""scripts/compare_bundles.py on the tiny bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from athe_export.bundle.reader import open_bundle
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts/compare_bundles.py"
TINY = ROOT / "tests/bundles/v1/tiny"


def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_every_graph_and_a_routed_image_of_every_branch_are_compared() -> None:
    done = ran(TINY, TINY, "--rounds", 3, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    manifest = open_bundle(TINY).manifest
    graphs = {(g.target, g.precision, g.role) for g in manifest.graphs if g.role != "router"}
    expected = graphs | {(t, p, "router") for t, p, _ in graphs} | {(t, p, f"routed {b}") for t, p, b in graphs}
    assert {(row["target"], row["precision"], row["what"]) for row in rows} == expected
    assert all(row["lower"] <= row["value"] <= row["upper"] for row in rows)


def test_a_folder_that_is_no_bundle_is_one_message(tmp_path: Path) -> None:
    done = ran(TINY, tmp_path)
    assert done.returncode == 5 and str(tmp_path) in done.stderr and "Traceback" not in done.stderr
