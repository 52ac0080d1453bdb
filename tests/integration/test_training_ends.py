"""How training ends before its end: Ctrl-C and a full disk are one message each, from both entry points."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from athe_export.errors import RESUME
from athe_export.training.__main__ import main
from tests.tools import Outcome, cli, environment, refused, require_one_message

PHASE = [{"epochs": 1, "batch_size": 16, "lr": 0.001}]
TRAIN: dict[str, Any] = {"images": 128, "dense": [{**PHASE[0], "epochs": 400}], "adaptive": PHASE, "router": PHASE}


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer generated images to watch; they are drawn as ever."""
    monkeypatch.setattr("athe_export.data.shapes.SIZES", {"train": 30_000, "holdout": 20, "test": 20})


def _interruptible() -> None:
    """A test run in the background of a shell has Ctrl-C switched off, and would pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# in an installed command this is the entry point's own line
_PROGRAM = """
import sys
import athe_export.data.shapes as shapes
shapes.SIZES.update(holdout=20, test=20)
from athe_export.{module} import main
sys.exit(main())
"""


@pytest.mark.parametrize(("module", "verb"), [("cli", ["train"]), ("training.__main__", [])], ids=["command", "module"])
def test_interrupted_training_says_how_to_go_on_and_keeps_its_state(
    tiny: Callable[..., Path], tmp_path: Path, module: str, verb: list[str]
) -> None:
    recipe, output = tiny(train=TRAIN), tmp_path / "a.safetensors"
    line = [sys.executable, "-c", _PROGRAM.format(module=module), *verb, str(recipe), "--output", str(output)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment()}
    with subprocess.Popen(line, preexec_fn=_interruptible, **streams) as training:
        assert training.stdout is not None
        assert any("dense 2/400" in line for line in training.stdout)  # the state of the first epoch is saved
        training.send_signal(signal.SIGINT)
        said = training.stdout.read()
    assert training.returncode == 130, said
    assert said[said.index("error") :] == f"error: interrupted\n  next: {RESUME}\n"
    assert "Traceback" not in said
    refused(2, "usage", "train", recipe, "--output", output)
    partial = cli("train", recipe, "--output", output, "--resume", "--max-minutes", 0)
    assert partial.code == 0
    assert re.search(r"dense epoch \d+ of 400 was the last that ended", partial.out)
    assert "stopped before the plan's end, and not measured on the test split" in " ".join(partial.out.split())
    assert "test top-1" not in partial.out


def _by_module(recipe: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Outcome:
    monkeypatch.setattr(sys, "argv", ["training", str(recipe), "--output", str(output)])
    code = main()
    said = capsys.readouterr()
    return Outcome(code, said.out, said.err)


@pytest.mark.parametrize("entry", ["command", "module"])
def test_a_state_that_cannot_be_saved_is_one_message(
    tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    entry: str,
) -> None:
    """A limit on file size stands for the full disk: the same write fails, with another errno."""
    recipe, output = tiny(train=TRAIN), tmp_path / "a.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        if entry == "command":
            ended = cli("train", recipe, "--output", output)
        else:
            ended = _by_module(recipe, output, monkeypatch, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    require_one_message(ended, 7)
    assert "File too large" in ended.err and "at: None" not in ended.err
