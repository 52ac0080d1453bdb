"""Training: resumable bit for bit, honest about failure, and light enough for a bare machine."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from athe_export.data.shapes import Shapes
from athe_export.errors import CheckpointError, TrainingError, UsageError
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import load_recipe
from athe_export.training.images import augment, to_input
from athe_export.training.run import plan
from athe_export.training.train import train_recipe

TRAIN: dict[str, Any] = {
    "images": 32,
    "dense": [{"epochs": 1, "batch_size": 16, "lr": 0.001}],
    "adaptive": [{"epochs": 2, "batch_size": 16, "lr": 0.001}],
    "router": [{"epochs": 1, "batch_size": 16, "lr": 0.001}],
}


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer generated images to watch and to measure on; they are drawn as ever."""
    monkeypatch.setattr("athe_export.data.shapes.SIZES", {"train": 30_000, "holdout": 40, "test": 40})


def quiet(line: str) -> None:
    pass


def same(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_a_run_cut_anywhere_and_resumed_gives_bit_the_same_weights(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = load_recipe(tiny(train=TRAIN))
    whole = train_recipe(file, output=tmp_path / "whole.safetensors", report=quiet)
    cut = tmp_path / "cut.safetensors"
    stops = 0
    while True:  # a deadline already past ends the run after every single step, mid-epoch included
        result = train_recipe(file, output=cut, resume=stops > 0, max_minutes=0, report=quiet)
        if result.complete:
            break
        stops += 1
    assert stops == 2 * (1 + 2 + 1)
    assert same(whole.path, cut)


def test_a_killed_run_loses_its_last_steps_at_most(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny(train=TRAIN | {"images": 512, "dense": [{"epochs": 40, "batch_size": 16, "lr": 0.001}]})
    command = [sys.executable, "-m", "athe_export.training", str(recipe), "--output", str(tmp_path / "k.safetensors")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "dense" in process.stdout.readline()  # one epoch is done and saved
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = torch.load(tmp_path / "k.run" / "state.pt", weights_only=True)
    assert tuple(state["position"][:2]) >= (0, 1)
    lines: list[str] = []
    train_recipe(load_recipe(recipe), output=tmp_path / "k.safetensors", resume=True, max_minutes=0, report=lines.append)
    assert lines[0].startswith("resumed at phase 1, epoch")


def test_an_unfinished_run_is_not_overwritten_and_a_finished_one_leaves_no_state(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    file, output = load_recipe(tiny(train=TRAIN | {"images": 16})), tmp_path / "a.safetensors"
    train_recipe(file, output=output, max_minutes=0, report=quiet)
    with pytest.raises(UsageError, match="an unfinished run is here"):
        train_recipe(file, output=output, report=quiet)
    assert train_recipe(file, output=output, resume=True, report=quiet).complete
    assert [p.name for p in (tmp_path / "a.run").iterdir()] == ["log.csv"]


def test_nothing_to_resume_is_said(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        train_recipe(load_recipe(tiny(train=TRAIN)), output=tmp_path / "a.safetensors", resume=True, report=quiet)


def test_a_run_that_stops_early_leaves_the_finished_checkpoint_alone(tiny: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    output.write_bytes(b"finished")
    result = train_recipe(load_recipe(tiny(train=TRAIN)), output=output, max_minutes=0, report=quiet)
    assert result.path == tmp_path / "a.partial.safetensors" and result.path.exists()
    assert output.read_bytes() == b"finished"


def test_a_damaged_state_and_one_of_other_settings_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    output, state = tmp_path / "a.safetensors", tmp_path / "a.run" / "state.pt"
    train_recipe(load_recipe(tiny(train=TRAIN)), output=output, max_minutes=0, report=quiet)
    other = load_recipe(tiny(train=TRAIN | {"seed": 9}))
    with pytest.raises(UsageError, match="started with other settings"):
        train_recipe(other, output=output, resume=True, report=quiet)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="state cannot be read"):
        train_recipe(load_recipe(tiny(train=TRAIN)), output=output, resume=True, report=quiet)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rate(tiny: Callable[..., Path], tmp_path: Path) -> None:
    wild = TRAIN | {"dense": [{"epochs": 30, "batch_size": 16, "lr": 1.0}], "warmup_epochs": 0}
    recipe = tiny(train=wild)
    start = tmp_path / "start.safetensors"
    from safetensors.torch import save_file

    save_file({"head.weight": torch.full((100, 24), 1e38), "norm.weight": torch.full((24,), 1e30)}, start)
    with pytest.raises(TrainingError, match=r"loss is .* in dense epoch 1, step 0, at learning rate 1\.00e\+00"):
        train_recipe(load_recipe(recipe), init=start, output=tmp_path / "a.safetensors", report=quiet)
    assert not (tmp_path / "a.safetensors").exists()


def test_training_runs_on_a_machine_with_nothing_but_torch_numpy_safetensors_pyyaml_and_pillow(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    program = textwrap.dedent("""
        import sys
        for name in ("typer", "rich", "onnx", "onnxruntime", "onnxsim", "onnxscript", "platformdirs", "filelock"):
            sys.modules[name] = None  # import fails as if it were not installed
        import athe_export.data.shapes as shapes
        shapes.SIZES.update(holdout=20, test=20)
        from athe_export.training.__main__ import main
        sys.exit(main())
    """)
    few = TRAIN | {"images": 16, "adaptive": [{"epochs": 1, "batch_size": 16}]}
    command = [sys.executable, "-c", program, str(tiny(train=few)), "--output", str(tmp_path / "bare.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "bare.safetensors").exists() and (tmp_path / "bare.metrics.json").exists()


def test_training_reduces_the_loss(tiny: Callable[..., Path], tmp_path: Path) -> None:
    longer = TRAIN | {"dense": [{"epochs": 12, "batch_size": 16, "lr": 0.003}], "warmup_epochs": 1}
    lines: list[str] = []
    train_recipe(load_recipe(tiny(train=longer)), output=tmp_path / "a.safetensors", report=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if line.startswith("dense ")]
    assert losses[0] > 4.4 and losses[-1] < losses[0] - 0.5
    assert not any(math.isnan(x) for x in losses)


def test_phases_of_one_kind_share_one_schedule(tiny: Callable[..., Path]) -> None:
    two = TRAIN | {"dense": [{"epochs": 2, "image_size": 16}, {"epochs": 3}]}
    spec = load_recipe(tiny(train=two)).recipe.train
    assert spec is not None
    assert [(p.kind, p.first, p.group) for p in plan(spec)][:2] == [("dense", 0, 5), ("dense", 2, 5)]


def test_training_sees_what_the_device_sees_within_a_grey_level() -> None:
    preprocessing = Preprocessing(32, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    source = Shapes().image("train", 1)
    ours = preprocessing.tensor(source, 64)
    torchs = to_input(torch.from_numpy(source.transpose(2, 0, 1).copy())[None], 64, preprocessing).numpy()
    assert float(np.abs(ours - torchs).mean()) * 255 < 0.02
    assert float(np.abs(ours - torchs).max()) * 255 <= 2.01


def test_augmentation_moves_and_mirrors_but_invents_no_values() -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    source[10:20, 12:25] = (200, 30, 90)
    pixels = torch.from_numpy(source.transpose(2, 0, 1).copy())[None].repeat(64, 1, 1, 1)
    made = augment(pixels, 4, True, torch.Generator().manual_seed(0))
    assert made.shape == pixels.shape and made.dtype == torch.uint8
    assert set(made[:, 0].unique().tolist()) == {0, 200}
    assert len({bytes(m.numpy().tobytes()) for m in made}) > 20
    again = augment(pixels, 4, True, torch.Generator().manual_seed(0))
    assert torch.equal(made, again)
    Image.fromarray(made[0].permute(1, 2, 0).numpy())
