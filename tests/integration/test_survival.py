"""The bundle in place survives whatever becomes of the next one: a kill in any stage, a missed gate, a full disk."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from athe_export.bundle.reader import open_bundle
from athe_export.plan import plan_build
from athe_export.recipe import load_recipe
from athe_export.verify import verify_bundle
from tests.conftest import TINY
from tests.tools import Outcome, cli, environment, error_of, listing, refused, require_one_message

# the second branch of the tiny recipe alone: every stage of a build in half its time
PLAIN: dict[str, Any] = {"router": None, "branches": TINY["branches"][1:]}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def output(built: Path, tmp_path: Path) -> Path:
    """A bundle in place, which the next build is to replace."""
    shutil.copytree(built, tmp_path / "out" / "bundle")
    return tmp_path / "out" / "bundle"


def _gate(limit: int) -> dict[str, Any]:
    return {**TINY["data"], "gate": {"split": "test", "limit": limit}}


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}


# A build that waits where it would exchange the bundles: a kill that comes late still comes before that. Kills during the
# exchange have a test of their own.
_BUILD = """
import time
from athe_export.bundle.writer import StagedBundle
from athe_export.cli import main
assert StagedBundle.promote
StagedBundle.promote = lambda staged: time.sleep(30)
main()
"""


def _kill_at(stage: str, recipe: Path, output: Path) -> None:
    """Starts a build and kills it, without a chance to clean up, as soon as it announces a stage."""
    line = [sys.executable, "-c", _BUILD, "build", str(recipe), "-o", str(output)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()) as build:
        assert build.stderr is not None
        for said in build.stderr:
            if said.strip() == stage:
                build.kill()
                break
    assert build.returncode == -9, f"the build ended before stage {stage!r}"


def test_a_build_killed_in_any_stage_leaves_the_old_bundle_and_does_not_hinder_the_next(
    tiny: Callable[..., Path], output: Path
) -> None:
    recipe = tiny(**PLAIN)
    before = listing(output)
    stages = plan_build(load_recipe(recipe), output, None, None)["stages"]
    assert stages[0] == "data" and stages[-1] == "verify"
    for stage in stages:
        _kill_at(stage, recipe, output)
        assert listing(output) == before, f"killed in stage {stage!r}"
        assert verify_bundle(output).verdict == "pass"
        assert _names(output.parent) - {".bundle.exported.staging"} == {"bundle", ".bundle.staging"}
    assert cli("build", recipe, "-o", output).code == 0
    assert [b.name for b in open_bundle(output).manifest.branches] == ["complex"]
    assert verify_bundle(output).verdict == "pass"
    assert _names(output.parent) == {"bundle"}


# Replaces a bundle by another, again and again, through the writer that a build uses; slow only in starting.
_REPLACE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from itertools import count
from pathlib import Path
from athe_export.bundle.writer import staged_bundle
from tests.tools import fill
print("started", flush=True)
for turn in count():
    with staged_bundle(Path(sys.argv[1])) as staged:
        fill(staged, f"label {{turn}}")
        staged.promote()
"""


def test_a_kill_at_any_moment_of_the_exchange_leaves_a_whole_bundle(output: Path) -> None:
    """Kills land between any two system calls of staging, exchange and removal; only their moments differ by run."""
    moments, replaced = random.Random(0), 0
    for _ in range(12):
        line = [sys.executable, "-c", _REPLACE, str(output)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment()) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "started\n"
            time.sleep(moments.uniform(0, 0.2))
            writer.kill()
        bundle = open_bundle(output)
        bundle.check()
        replaced += bundle.manifest.name == "plain"
    assert replaced, "no bundle was replaced before its writer was killed, so nothing was tried"


def test_a_missed_gate_keeps_its_staging_folder_and_the_old_bundle(tiny: Callable[..., Path], output: Path) -> None:
    # of 300 images of an untrained model some are answered otherwise in int8, and not one may be
    recipe = tiny(**PLAIN, data=_gate(300), parity={**TINY["parity"], "min_agreement": 1.0})
    before, staging = listing(output), output.with_name(".bundle.staging")
    ended = cli("build", recipe, "-o", output, "--json")
    error = error_of(ended, 3, "gate_failed")
    assert listing(output) == before
    assert open_bundle(staging).manifest.verdict == "fail"
    assert "onnx.min_agreement 1 is broken" in error["message"] and "off by" in error["message"]
    assert "max_top1_drop_pp" not in error["message"], "a limit that holds was called broken"
    require_one_message(ended, 3)
    assert str(staging) in ended.err and "is kept" in ended.err
    document = ended.document
    assert (document["verdict"], document["bundle"], document["parity"]["images"]) == ("fail", str(staging), 300)
    assert {s["name"] for s in document["stages"]} >= {"data", "parity", "verify"}


def test_a_gate_of_too_few_images_is_inconclusive_and_promotes_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    # whatever two images say, a bound of one half lies between what they allow and what they rule out
    limits = {**TINY["parity"], "max_top1_drop_pp": 100, "min_agreement": 0.5}
    recipe, output = tiny(**PLAIN, data=_gate(2), parity=limits), tmp_path / "out" / "bundle"
    ended = cli("build", recipe, "-o", output, "--json")
    error = error_of(ended, 4, "gate_inconclusive")
    assert "onnx.min_agreement 0.5 cannot be decided" in error["message"]
    assert (ended.document["verdict"], output.exists()) == ("inconclusive", False)
    staging = output.with_name(".bundle.staging")
    assert error["where"] == str(staging)
    assert verify_bundle(staging).verdict == "pass"


def test_a_second_build_of_the_same_output_is_told_so_before_it_does_anything(
    tiny: Callable[..., Path], output: Path
) -> None:
    before = listing(output.parent)
    with FileLock(output.with_name(".bundle.lock")):
        error = refused(7, "environment", "build", tiny(), "-o", output)
    assert "another build is writing this output" in error["message"] and error["where"] == str(output)
    assert listing(output.parent) == before


def _on_small_disk(script: str, *arguments: object) -> Outcome:
    """Runs a shell script in a namespace of its own, in which it may mount small disks."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("user namespaces are not permitted here, so no small disk can be mounted")
    line = ["unshare", "-Urm", "sh", "-ec", script, "sh", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_disk_that_fills_up_leaves_the_old_bundle(tiny: Callable[..., Path], built: Path, tmp_path: Path) -> None:
    # room for the old bundle and for the new graph, not for the reference of 300 images
    room = sum(-(-p.stat().st_size // 4096) * 4 for p in built.rglob("*") if p.is_file()) + 88
    script = """
        mount -t tmpfs -o size=$1k none "$2"
        cp -r "$3" "$2/bundle"
        "$4" -m athe_export.cli build "$5" -o "$2/bundle" --json || code=$?
        "$4" -m athe_export.cli verify "$2/bundle" >&2
        test "$(ls -A "$2")" = ".bundle.lock
bundle" || exit 99
        exit ${code:-0}
    """
    (tmp_path / "disk").mkdir()
    recipe = tiny(**PLAIN, data=_gate(300))
    ended = _on_small_disk(script, room, tmp_path / "disk", built, sys.executable, recipe)
    error = error_of(ended, 7, "environment")
    assert "No space left on device" in error["message"] and error["where"].startswith(str(tmp_path / "disk"))
    assert "verdict: pass" in ended.err


def test_a_full_folder_for_temporary_files_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    script = """
        mount -t tmpfs -o size=64k none "$1"
        TMPDIR="$1" "$2" -m athe_export.cli build "$3" -o "$4" --json
    """
    (tmp_path / "disk").mkdir()
    ended = _on_small_disk(script, tmp_path / "disk", sys.executable, tiny(**PLAIN), tmp_path / "out" / "bundle")
    error = error_of(ended, 7, "environment")
    assert "temporary files" in error["message"] and error["where"] == str(tmp_path / "disk")
    assert "TMPDIR" in error["remedy"]
    assert listing(tmp_path / "out") == {}
