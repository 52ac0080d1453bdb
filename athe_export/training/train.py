"""`train_recipe`: a recipe to a trained checkpoint and its metrics file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from athe_export import __version__
from athe_export.data.calibration import read_calibration_set
from athe_export.data.source import Dataset, Progress, no_progress, open_dataset, require_split
from athe_export.errors import RecipeError, UsageError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import load_tensors, read_checkpoint, save_checkpoint, tensors_of
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import RecipeFile
from athe_export.training.images import ImageSet
from athe_export.training.metrics import metrics_of
from athe_export.training.run import Corpus, Report, TrainingRun


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
    command: str = "",
    report: Report = print,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Trains the recipe's checkpoint.

    Args:
        init: a checkpoint to start the backbone from (whatever tensors fit the model are taken and counted).
        output: where to write; default: the recipe's checkpoint.path. A run that stops early writes
            `<output>.partial.safetensors` in its place.
        resume: continue the state left beside the output.
        command: as typed; recorded in the metrics.

    Raises:
        RecipeError, UsageError, DatasetError, CheckpointError, TrainingError.
    """
    recipe = file.recipe
    output, chosen = _output_of(file, output), _device(device)
    folder = output.with_suffix(".run")
    _check_state(folder, resume)
    began = time.monotonic()
    dataset = open_dataset(
        recipe.data.dataset, data_root, file.resolve(recipe.data.path) if recipe.data.path else None, progress
    )
    preprocessing = Preprocessing(**vars(recipe.data.preprocessing))
    model = AtheModel(recipe)
    model.initialise(recipe.train.seed if recipe.train else 0)
    if init is not None:
        _initialise_from(model, init, report)
    corpus = _corpus(file, dataset, preprocessing, progress)
    deadline = None if max_minutes is None else began + 60 * max_minutes
    run = TrainingRun(model, corpus, preprocessing, folder, chosen, report, deadline, command)
    if resume:
        run.resume()
    complete = run.run()
    metrics = metrics_of(model, dataset, preprocessing, corpus.holdout, chosen, progress)
    metrics |= {
        "complete": complete,
        "command": run.commands[0],
        "resumed_by": list(run.commands[1:]),
        "settings_sha256": run.settings,
        "dataset_sha256": dataset.digest,
        "minutes": round(run.seconds / 60, 1),
        "device": str(chosen),
        "versions": {"athe_export": __version__, "torch": torch.__version__},
    }
    if not complete:  # what is unfinished never takes the place of a finished checkpoint
        output = output.with_suffix(".partial.safetensors")
    metrics["checkpoint_sha256"] = save_checkpoint(output, model, {"name": recipe.name, "complete": complete})
    output.with_suffix(".metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if complete:  # last of all: a kill before it can be resumed, and loses nothing
        run.state.unlink()
    return TrainingResult(output, metrics["checkpoint_sha256"], complete, metrics)


def _output_of(file: RecipeFile, asked: Path | None) -> Path:
    if file.recipe.train is None:
        raise RecipeError("has no train section", where=str(file.path), remedy="add one; docs/recipe.md lists its keys")
    if asked is not None:
        return asked
    if file.recipe.checkpoint.path is None:
        raise RecipeError(
            "names no checkpoint to write", where="checkpoint.path", remedy="set checkpoint.path, or pass --output"
        )
    return file.resolve(file.recipe.checkpoint.path)


def _check_state(folder: Path, resume: bool) -> None:
    unfinished = (folder / "state.pt").exists()
    if resume and not unfinished:
        raise UsageError("there is nothing to resume", where=str(folder), remedy="train without --resume")
    if unfinished and not resume:
        raise UsageError(
            "an unfinished run is here; it is not overwritten",
            where=str(folder),
            remedy="continue it with --resume, or remove the folder to start afresh",
        )


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}", where="--device", remedy="use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available", where="--device cuda", remedy="use --device auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _initialise_from(model: AtheModel, path: Path, report: Report) -> None:
    found = read_checkpoint(path).tensors
    own = tensors_of(model)
    taken = {n: t for n, t in found.items() if n in own and own[n].shape == t.shape}
    load_tensors(model, own | taken)
    left = sorted(set(found) - set(taken))
    report(f"{len(taken)} of {len(own)} tensors start from {path.name}; not taken: {', '.join(left) or 'none'}")


def _corpus(file: RecipeFile, dataset: Dataset, preprocessing: Preprocessing, progress: Progress) -> Corpus:
    recipe = file.recipe
    assert recipe.train is not None
    for split in ("train", "holdout", "test"):  # the last is read when all is trained: too late to find it missing
        require_split(dataset, split, "data.dataset")
    train = ImageSet.load(dataset, "train", preprocessing, recipe.train.images, progress)
    holdout = ImageSet.load(dataset, "holdout", preprocessing, None, progress)
    calibration = read_calibration_set(file.resolve(recipe.data.calibration))
    pixels = [preprocessing.source(dataset.image(calibration.split, i)).transpose(2, 0, 1) for i in calibration.ids]
    labels = dataset.labels(calibration.split)[list(calibration.ids)]
    return Corpus(train, holdout, ImageSet(torch.from_numpy(np.stack(pixels)), torch.from_numpy(labels)))
