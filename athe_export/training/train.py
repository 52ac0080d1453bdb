"""`train_recipe`: a recipe to a trained checkpoint and its metrics file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from athe_export import __version__
from athe_export.bench.machine import processor
from athe_export.data.calibration import CalibrationSet, read_calibration_set
from athe_export.data.source import Dataset, Progress, no_progress, open_dataset, require_split
from athe_export.errors import RecipeError, UsageError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import load_tensors, save_checkpoint, tensors_of
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import RecipeFile, TrainSpec
from athe_export.training.images import ImageSet, to_input
from athe_export.training.log import Report
from athe_export.training.metrics import metrics_of
from athe_export.training.objective import Corpus
from athe_export.training.router_images import set_apart
from athe_export.training.run import TrainingRun
from athe_export.training.state import remove_state, state_exists
from athe_export.training.transfer import transfer


@dataclass(frozen=True)
class TrainingResult:
    """Where the checkpoint is, its sha256, whether the plan was completed, and the metrics as written."""

    path: Path
    sha256: str
    complete: bool
    metrics: dict[str, Any]


def train_recipe(
    file: RecipeFile,
    *,
    data_root: Path | None = None,
    init: Path | None = None,
    output: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    max_minutes: float | None = None,
    compiled: bool = False,
    command: str = "",
    report: Report = print,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Trains the recipe's checkpoint.

    Args:
        init: a checkpoint to start from (whatever fits the model is taken, and the rest is said).
        output: where to write; default: the recipe's checkpoint.path. A run that stops early writes
            `<output>.partial.safetensors` in its place.
        resume: continue the state left beside the output.
        compiled: run the backbone's blocks through torch.compile; the results differ in their last digits.
        command: as typed; recorded in the metrics.

    Raises:
        RecipeError, UsageError, DatasetError, CheckpointError, TrainingError.
    """
    began, recipe = time.monotonic(), file.recipe
    output, chosen = _output_of(file, output), _device(device)
    folder = output.with_suffix(".run")
    _check_state(folder, resume)
    _check_start(file, init, resume)
    folder_of_images = file.resolve(recipe.data.path) if recipe.data.path else None
    dataset = open_dataset(recipe.data.dataset, data_root, folder_of_images, progress)
    preprocessing = Preprocessing(**vars(recipe.data.preprocessing))
    calibration = read_calibration_set(file.resolve(recipe.data.calibration))
    corpus = _corpus(_train_spec(file), dataset, calibration, preprocessing, progress)
    model = AtheModel(recipe)
    model.initialise(_train_spec(file).seed)
    deadline = None if max_minutes is None else began + 60 * max_minutes
    run = TrainingRun(model, corpus, preprocessing, folder, chosen, report, deadline, command, progress)
    _start(run, init, resume)
    if compiled:
        _compile(model)
    complete = run.run()
    _round_to_half(model)
    reached = metrics_of(model, dataset, preprocessing, run.corpus.holdout, chosen, progress) if complete else _so_far(run)
    metrics = reached | _circumstances(run, file, dataset, calibration, chosen) | {"complete": complete}
    return _written(output, run, metrics)


def _start(run: TrainingRun, init: Path | None, resume: bool) -> None:
    """From the run's own state, from another checkpoint, or from the initial weights."""
    if resume:
        run.resume()
        if init is not None:
            run.report(f"{init.name} is not read again: the run goes on from its own state")
    elif init is not None:
        started = transfer(run.model, init, _labelled(run))
        run.started_from = {"file": started.name, "sha256": started.sha256}
        run.report("\n".join(started.lines()))


def _labelled(run: TrainingRun) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Calibration images with labels, as far as structured pruning asks for them, on the CPU."""
    recipe = run.model.recipe
    limit = recipe.checkpoint.structured.images if recipe.checkpoint.structured else 0
    calibration = run.corpus.calibration.to(torch.device("cpu"))
    images = ImageSet(calibration.pixels[:limit], calibration.labels[:limit])
    return ((to_input(pixels, recipe.model.image_size, run.preprocessing), labels) for pixels, labels in images.batches(16))


def _written(output: Path, run: TrainingRun, metrics: dict[str, Any]) -> TrainingResult:
    """Checkpoint, then metrics; then a finished run's state goes: a kill before that can be resumed, and loses nothing."""
    complete, name = metrics["complete"], run.model.recipe.name
    if not complete:  # what is unfinished never takes the place of a finished checkpoint
        output = output.with_suffix(".partial.safetensors")
    metrics["checkpoint_sha256"] = save_checkpoint(output, run.model, {"name": name, "complete": complete})
    output.with_suffix(".metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if complete:
        remove_state(run.state)
    return TrainingResult(output, metrics["checkpoint_sha256"], complete, metrics)


def _circumstances(
    run: TrainingRun, file: RecipeFile, dataset: Dataset, calibration: CalibrationSet, device: torch.device
) -> dict[str, Any]:
    """What the weights came from: commands, settings, data, time and machine."""
    return {
        "command": run.commands[0],
        "resumed_by": list(run.commands[1:]),
        "started_from": run.started_from,
        "seed": _train_spec(file).seed,
        "settings_sha256": run.settings,
        "dataset_sha256": dataset.digest,
        "calibration_sha256": calibration.pixels_sha256,
        "corpus": {"branches": len(run.corpus.train), "router": len(run.corpus.router), "holdout": len(run.corpus.holdout)},
        "minutes": round(run.seconds / 60, 1),
        "device": str(device),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "versions": {"athe_export": __version__, "torch": torch.__version__},
    }


def _so_far(run: TrainingRun) -> dict[str, Any]:
    """Of a run that stopped early: its last epoch on the held-out images. The test split stays untouched until the end."""
    rows = run.log.rows()
    return {"split": "holdout", "last_epoch": rows[-1] if rows else None}


def _processor() -> str:
    """The processor's name, where the system says it, and how many threads torch uses."""
    return f"{processor().name}, {torch.get_num_threads()} threads"


def _round_to_half(model: AtheModel) -> None:
    """The weights as they will be stored, so that the metrics are of those."""
    load_tensors(model, {n: t.half().float() if t.is_floating_point() else t for n, t in tensors_of(model).items()})


def _compile(model: AtheModel) -> None:
    """Block by block: branches cut heads and tokens differently, and each combination is compiled once."""
    torch._dynamo.config.recompile_limit = 256
    for block in model.backbone.blocks:
        block.compile()


def _train_spec(file: RecipeFile) -> TrainSpec:
    if file.recipe.train is None:
        raise RecipeError("has no train section", where=str(file.path), remedy="add one; docs/recipe.md lists its keys")
    return file.recipe.train


def _output_of(file: RecipeFile, asked: Path | None) -> Path:
    _train_spec(file)
    if asked is not None:
        return asked
    checkpoint = file.recipe.checkpoint
    if checkpoint.path is None:
        raise RecipeError(
            "names no checkpoint to write", where="checkpoint.path", remedy="set checkpoint.path, or pass --output"
        )
    if checkpoint.shared:
        raise RecipeError(
            f"{checkpoint.path} is another recipe's checkpoint and is not overwritten",
            where="checkpoint.shared",
            remedy="pass --output, and build with --checkpoint; or set a checkpoint.path of its own without shared",
        )
    return file.resolve(checkpoint.path)


def _check_state(folder: Path, resume: bool) -> None:
    unfinished = state_exists(folder / "state.pt")
    if resume and not unfinished:
        raise UsageError("there is nothing to resume", where=str(folder), remedy="train without --resume")
    if unfinished and not resume:
        raise UsageError(
            "an unfinished run is here; it is not overwritten",
            where=str(folder),
            remedy="continue it with --resume, or remove the folder to start afresh",
        )


def _check_start(file: RecipeFile, init: Path | None, resume: bool) -> None:
    if not (_train_spec(file).fits_branches or init or resume):
        raise UsageError(
            "no phase trains the backbone, and there is none to start from",
            where=f"{file.path}: train",
            remedy="pass --init with a checkpoint, or add phases to train.dense or train.adaptive",
        )


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}", where="--device", remedy="use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available", where="--device cuda", remedy="use --device auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _corpus(
    spec: TrainSpec, dataset: Dataset, calibration: CalibrationSet, preprocessing: Preprocessing, progress: Progress
) -> Corpus:
    for split in ("train", "holdout", "test"):  # the last is read when all is trained: too late to find it missing
        require_split(dataset, split, "data.dataset")
    images = ImageSet.load(dataset, "train", preprocessing, spec.images, progress)
    holdout = ImageSet.load(dataset, "holdout", preprocessing, None, progress)
    pixels = [preprocessing.source(dataset.image(calibration.split, i)).transpose(2, 0, 1) for i in calibration.ids]
    labels = dataset.labels(calibration.split)[list(calibration.ids)]
    train, router = set_apart(images, spec)
    return Corpus(train, router, holdout, ImageSet(torch.from_numpy(np.stack(pixels)), torch.from_numpy(labels)))
