"""The resumable state of a run: one file, replaced whole, that knows which settings it belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from athe_export.errors import CheckpointError, UsageError
from athe_export.recipe import PhaseSpec, Recipe, TrainSpec

_AFRESH = "remove the folder to start afresh"
# Keys that digests have always counted. A later one counts where it is set, so that digests taken before it still hold.
_ALWAYS = {
    TrainSpec: "dense adaptive router seed weight_decay warmup_epochs label_smoothing crop_padding flip distill images",
    PhaseSpec: "epochs image_size lr batch_size",
}


@dataclass(frozen=True)
class RunState:
    """Weights, optimiser and what to do next (phase, epoch, step), with the run's settings, seconds and commands so far."""

    settings: str
    tensors: dict[str, Tensor]
    optimiser: dict[str, Any] | None
    position: tuple[int, int, int]
    seconds: float
    commands: tuple[str, ...]


def settings_digest(recipe: Recipe) -> str:
    """sha256 of everything in a recipe that trained weights depend on: no limits, targets, thresholds or digests."""
    data, router = recipe.data, recipe.router
    parts = {
        "model": dataclasses.asdict(recipe.model),
        "branches": [dataclasses.asdict(b) for b in recipe.branches],
        "router": [router.arch, router.image_size] if router else None,
        "data": [data.dataset, data.path, data.calibration, dataclasses.asdict(data.preprocessing)],
        "train": _counted(recipe.train) if recipe.train else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _counted(spec: TrainSpec | PhaseSpec) -> dict[str, Any]:
    """The keys of a spec that its digest counts."""
    always, counted = _ALWAYS[type(spec)].split(), {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name in always or value != field.default:
            phases = isinstance(value, tuple)
            counted[field.name] = [_counted(phase) for phase in value] if phases else value
    return counted


def write_state(path: Path, state: RunState) -> None:
    """Writes to the side and renames: a half-written state is never the newest."""
    staging = path.with_suffix(".part")
    with staging.open("wb") as file:
        torch.save({f.name: getattr(state, f.name) for f in dataclasses.fields(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def read_state(path: Path, settings: str, device: torch.device) -> RunState:
    """Inverse of `write_state`.

    Raises:
        CheckpointError: truncated or not a state.
        UsageError: the state of a run with other settings.
    """
    try:
        state = RunState(**torch.load(path, map_location=device, weights_only=True))
    except Exception as err:  # torch raises many kinds for a damaged file
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise CheckpointError(f"the run's state cannot be read: {reason}", where=str(path), remedy=_AFRESH) from None
    if state.settings != settings:
        raise UsageError(
            "the unfinished run was started with other settings than the recipe has now",
            where=str(path),
            remedy=f"restore model, branches, router, train and preprocessing in the recipe, or {_AFRESH}",
        )
    return state
