"""Where stdout leads nowhere, and where a person loses patience."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import Outcome, environment, error_of, listing, python


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("verb", [["recipes", "list"], ["recipes", "list", "--json"], ["schema"]], ids=" ".join)
def test_a_full_disk_behind_stdout_is_said(verb: list[str], buffered: bool) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full on this system")
    surroundings = {**environment(), "PYTHONUNBUFFERED": "" if buffered else "1"}
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "athe_export.cli", *verb]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, env=surroundings, check=False)
    assert done.returncode == 7
    assert done.stderr.startswith("error: No space left on device\n")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("verb", [["recipes", "list"], ["schema"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_error(verb: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "athe_export.cli", *verb]
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("status", [0, 1])
def test_a_library_that_ends_the_program_is_a_failure(status: int) -> None:
    code = f"import sys, athe_export.shipped as s; s.shipped_recipes = lambda: sys.exit({status})\n"
    done = python(code + "from athe_export.cli import main; main()", "recipes", "list", "--json")
    error = error_of(Outcome(done.returncode, done.stdout, done.stderr), 1, "internal")
    assert error["message"] == f"SystemExit: {status}"


# A test run in the background of a shell has Ctrl-C switched off, and passes that on. Not `python -m`: where an interrupt
# is met within exec() that ends as if killed by it, which a shell shows as 130 and Popen as -2.
_INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from athe_export.cli import main
main()
"""


def test_an_interrupted_build_says_so_and_leaves_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    line = [sys.executable, "-c", _INTERRUPTIBLE, "build", str(tiny()), "-o", str(tmp_path / "out" / "bundle"), "--json"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    with subprocess.Popen(line, **streams) as build:
        assert build.stdout is not None and build.stderr is not None
        assert build.stderr.readline() == "data\n"
        build.send_signal(signal.SIGINT)
        err, out = build.stderr.read(), build.stdout.read()
    assert "Traceback" not in err and err.count("error: interrupted") == 1
    assert build.returncode == 130
    assert listing(tmp_path / "out") == {}
    error_of(Outcome(130, out, err), 130, "interrupted")


def test_a_build_whose_progress_nobody_reads_is_finished(tiny: Callable[..., Path], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    recipe = tiny(checkpoint={"path": "absent.safetensors"})  # fails after its first stage, which stderr announces
    line = [sys.executable, "-m", "athe_export.cli", "build", str(recipe), "-o", str(tmp_path / "b"), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=write, text=True, env=environment(), check=False)
    os.close(write)
    error_of(Outcome(done.returncode, done.stdout, ""), 2, "checkpoint")
