"""Training: resumable bit for bit, honest about failure, and light enough for a bare machine."""

from __future__ import annotations

import csv
import hashlib
import math
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from athe_export.errors import CheckpointError, TrainingError, UsageError
from athe_export.recipe import load_recipe
from athe_export.training.images import ImageSet
from athe_export.training.losses import CHECK_STEPS
from athe_export.training.plan import plan
from athe_export.training.train import train_recipe

TRAIN: dict[str, Any] = {
    "images": 32,
    "dense": [{"epochs": 1, "batch_size": 16, "lr": 0.001}],
    "adaptive": [{"epochs": 2, "batch_size": 16, "lr": 0.001}],
    "router": [{"epochs": 1, "batch_size": 16, "lr": 0.001}],
}
# every kind of randomness and memory that a run can have
EVERYTHING: dict[str, Any] = {
    "images": 48,
    "dense": [{"epochs": 1, "batch_size": 16, "lr": 0.001, "image_size": 16}],
    "adaptive": [{"epochs": 1, "batch_size": 16, "patch_keep": 0.5}, {"epochs": 1, "batch_size": 16, "light": True}],
    "router_features": [{"epochs": 1, "batch_size": 16}],
    "router": [{"epochs": 1, "batch_size": 16}, {"epochs": 1, "batch_size": 16}],
    "trivial_augment": True, "random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "repeated_augmentation": 2,
    "stochastic_depth": 0.3, "ema": 0.9, "distill_tokens": 0.5, "rank_epochs": 2, "router_images": 16, "router_views": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer generated images to watch and to measure on; they are drawn as ever."""
    monkeypatch.setattr("athe_export.data.shapes.SIZES", {"train": 30_000, "holdout": 40, "test": 40})


def quiet(line: str) -> None:
    pass


def same(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize(("train", "steps"), [(TRAIN, 2 * 4), (EVERYTHING, 2 * 4 + 2 * 2)], ids=["plain", "everything"])
def test_a_run_cut_anywhere_and_resumed_gives_bit_the_same_weights(
    tiny: Callable[..., Path], tmp_path: Path, train: dict[str, Any], steps: int
) -> None:
    file = load_recipe(tiny(train=train))
    whole = train_recipe(file, output=tmp_path / "whole.safetensors", report=quiet)
    cut = tmp_path / "cut.safetensors"
    stops = 0
    while True:  # a deadline already past ends the run after every single step, mid-epoch included
        result = train_recipe(file, output=cut, resume=stops > 0, max_minutes=0, report=quiet)
        if result.complete:
            break
        stops += 1
    assert stops == steps
    assert same(whole.path, cut)
    logs = [(tmp_path / f"{name}.run" / "log.csv").read_text().splitlines() for name in ("whole", "cut")]
    timed = (6, 7)  # images_per_second, minutes
    assert [[c for i, c in enumerate(line.split(",")) if i not in timed] for line in logs[0]] == [
        [c for i, c in enumerate(line.split(",")) if i not in timed] for line in logs[1]
    ]


def test_a_run_killed_at_any_moment_and_resumed_gives_bit_the_same_weights(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed while it computes, looks at images or writes its state; what was not yet saved is done again."""
    longer = EVERYTHING | {"dense": [{"epochs": 30, "batch_size": 16, "image_size": 16}]}
    recipe = tiny(train=longer)
    program = textwrap.dedent("""
        import sys
        import torch
        torch.set_num_threads(1)
        import athe_export.data.shapes as shapes
        shapes.SIZES.update(holdout=40, test=40)
        import athe_export.training.run as run
        run.SAVE_SECONDS = run.EPOCH_SAVE_SECONDS = 0.1
        from athe_export.training.__main__ import main
        sys.exit(main())
    """)
    command = [sys.executable, "-c", program, str(recipe), "--output", str(tmp_path / "killed.safetensors")]
    kills = 0
    for after, delay in (("dense 3/", 0.05), ("dense 9/", 0.17), ("dense 17/", 0.29), ("adaptive 1/", 0.0)):
        resumed = ["--resume"] if kills else []
        with subprocess.Popen([*command, *resumed], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any(line.startswith(after) for line in process.stdout), after
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 4
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        file = load_recipe(recipe)
        again = train_recipe(file, output=tmp_path / "killed.safetensors", resume=True, report=quiet)
        whole = train_recipe(file, output=tmp_path / "whole.safetensors", report=quiet)
    finally:
        torch.set_num_threads(threads)
    assert again.complete and len(again.metrics["resumed_by"]) == 4
    assert same(whole.path, again.path)


def test_an_unfinished_run_is_not_overwritten_and_a_finished_one_leaves_no_state(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    file, output = load_recipe(tiny(train=TRAIN | {"images": 16})), tmp_path / "a.safetensors"
    train_recipe(file, output=output, max_minutes=0, report=quiet)
    with pytest.raises(UsageError, match="an unfinished run is here"):
        train_recipe(file, output=output, report=quiet)
    assert train_recipe(file, output=output, resume=True, report=quiet).complete
    assert sorted(p.name for p in (tmp_path / "a.run").iterdir()) == ["curves.svg", "log.csv"]


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


@pytest.mark.parametrize("lost", ["truncated", "absent"])
def test_where_the_newest_state_is_lost_the_one_before_it_is_resumed_and_that_is_said(
    tiny: Callable[..., Path], tmp_path: Path, lost: str
) -> None:
    file, output = load_recipe(tiny(train=TRAIN)), tmp_path / "a.safetensors"
    newest = tmp_path / "a.run" / "state.pt"
    for resume in (False, True):
        train_recipe(file, output=output, resume=resume, max_minutes=0, report=quiet)
    assert sorted(p.name for p in newest.parent.glob("*.pt")) == ["state.before.pt", "state.pt"]
    newest.write_bytes(newest.read_bytes()[:1000]) if lost == "truncated" else newest.unlink()
    lines: list[str] = []
    with pytest.raises(UsageError, match="an unfinished run is here"):
        train_recipe(file, output=output, report=quiet)
    result = train_recipe(file, output=output, resume=True, report=lines.append)
    assert lines[0].startswith("the newest state cannot be read, going on from the one before it (state.pt: ")
    assert same(result.path, train_recipe(file, output=tmp_path / "whole.safetensors", report=quiet).path)


def test_a_state_is_a_checkpoint_to_start_another_run_from(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = load_recipe(tiny(train=TRAIN | {"ema": 0.9}))
    train_recipe(file, output=tmp_path / "a.safetensors", max_minutes=0, report=quiet)
    lines: list[str] = []
    state = tmp_path / "a.run" / "state.pt"
    train_recipe(file, init=state, output=tmp_path / "b.safetensors", max_minutes=0, report=lines.append)
    assert re.match(r"(\d+) of \1 tensors start from state\.pt$", lines[0])


def test_a_plan_of_the_router_alone_leaves_the_branches_bit_for_bit_as_they_were(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    first = train_recipe(load_recipe(tiny(train=TRAIN)), output=tmp_path / "a.safetensors", report=quiet)
    plan_of_router = TRAIN | {"dense": [], "adaptive": []}
    result = train_recipe(
        load_recipe(tiny(train=plan_of_router)), init=first.path, output=tmp_path / "b.safetensors", report=quiet
    )
    before, after = load_file(first.path), load_file(result.path)
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert result.complete and before.keys() == after.keys() and changed == {"router"}


def test_a_plan_of_the_router_alone_ranks_heads_that_no_checkpoint_has_ranked(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    dense = TRAIN | {"adaptive": [], "router": []}
    first = train_recipe(load_recipe(tiny(train=dense)), output=tmp_path / "a.safetensors", max_minutes=0, report=quiet)
    lines: list[str] = []
    train = TRAIN | {"dense": [], "adaptive": []}
    train_recipe(load_recipe(tiny(train=train)), init=first.path, output=tmp_path / "b.safetensors", report=lines.append)
    assert any("heads ranked" in line for line in lines) and "head_rank" in load_file(tmp_path / "b.safetensors")


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rate(tiny: Callable[..., Path], tmp_path: Path) -> None:
    wild = TRAIN | {"dense": [{"epochs": 30, "batch_size": 16, "lr": 1.0}], "warmup_epochs": 0}
    recipe = tiny(train=wild)
    start = tmp_path / "start.safetensors"
    large = {"head.weight": torch.full((100, 24), 1e38), "norm.weight": torch.full((24,), 1e30)}
    save_file(large | {"patch_embed.proj.bias": torch.zeros(24)}, start)
    with pytest.raises(TrainingError, match=r"loss is .* in dense epoch 1, step 0, at learning rate 1\.00e\+00"):
        train_recipe(load_recipe(recipe), init=start, output=tmp_path / "a.safetensors", report=quiet)
    assert not (tmp_path / "a.safetensors").exists()


def test_losses_that_are_looked_at_now_and_then_change_neither_weights_nor_log_nor_what_a_bad_one_is_called(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, which is not waited for after each step."""
    recipe = tiny(train=TRAIN | {"images": 80})
    each = train_recipe(load_recipe(recipe), output=tmp_path / "each.safetensors", report=quiet)
    monkeypatch.setitem(CHECK_STEPS, "cpu", 3)
    some = train_recipe(load_recipe(recipe), output=tmp_path / "some.safetensors", report=quiet)
    assert same(each.path, some.path)
    assert losses_of(tmp_path / "each.run" / "log.csv") == losses_of(tmp_path / "some.run" / "log.csv")
    start = tmp_path / "start.safetensors"
    save_file({"patch_embed.proj.bias": torch.full((24,), 1e38)}, start)
    with pytest.raises(TrainingError, match=r"loss is .* in dense epoch 1, step 0, at learning rate"):
        train_recipe(load_recipe(recipe), init=start, output=tmp_path / "bad.safetensors", report=quiet)
    assert not (tmp_path / "bad.run" / "state.pt").exists()


def losses_of(log: Path) -> list[str]:
    with log.open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


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


def test_heads_are_ranked_before_each_of_the_first_adaptive_epochs_and_then_frozen(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for epochs in (1, 2):
        lines: list[str] = []
        spec = TRAIN | {"images": 16, "adaptive": [{"epochs": 3, "batch_size": 16}], "rank_epochs": epochs}
        train_recipe(load_recipe(tiny(train=spec)), output=tmp_path / f"{epochs}.safetensors", report=lines.append)
        assert sum(line.startswith("heads ranked") for line in lines) == epochs


def test_an_unfinished_run_reports_the_held_out_images_and_never_opens_the_test_split(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = ImageSet.load
    monkeypatch.setattr(ImageSet, "load", lambda data, split, *rest: (read.append(split), load(data, split, *rest))[1])
    file, output = load_recipe(tiny(train=TRAIN | {"images": 16})), tmp_path / "a.safetensors"
    for resume in (False, True):
        metrics = train_recipe(file, output=output, resume=resume, max_minutes=0, report=quiet).metrics
    assert metrics["split"] == "holdout" and metrics["last_epoch"]["dense"]
    assert set(read) == {"train", "holdout"}
    assert train_recipe(file, output=output, resume=True, report=quiet).metrics["split"] == "test"
    assert "test" in read


def test_metrics_say_what_the_weights_came_from(tiny: Callable[..., Path], tmp_path: Path) -> None:
    start = tmp_path / "start.pt"
    file = load_recipe(tiny(train=EVERYTHING))
    torch.save({"patch_embed.proj.bias": torch.zeros(24)}, start)
    metrics = train_recipe(file, init=start, output=tmp_path / "a.safetensors", command="typed", report=quiet).metrics
    assert metrics["started_from"] == {"file": "start.pt", "sha256": hashlib.sha256(start.read_bytes()).hexdigest()}
    assert metrics["corpus"] == {"branches": 32, "router": 16, "holdout": 40}
    assert (metrics["command"], metrics["seed"], metrics["device"]) == ("typed", 0, "cpu")
    assert metrics["hardware"] and len(metrics["dataset_sha256"]) == len(metrics["calibration_sha256"]) == 64
    assert set(metrics["top1"]) == {"dense", "simple", "complex", "routed", "oracle", "random"}


def test_compiled_blocks_train_the_same_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Without the minutes that compiling takes: torch is told to run what it would have compiled."""
    file = load_recipe(tiny(train=EVERYTHING))
    plain = train_recipe(file, output=tmp_path / "plain.safetensors", report=quiet)
    with torch.compiler.set_stance("force_eager"):
        compiled = train_recipe(file, output=tmp_path / "compiled.safetensors", compiled=True, report=quiet)
    assert same(plain.path, compiled.path)
