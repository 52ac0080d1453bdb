"""The resumable state of a run: the newest two are kept, each written whole, and know which settings they belong to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
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
    """What a run goes on from.

    `tensors` are the weights, `average` their moving average after `updates` steps, where there is one; `position` is what
    to do next (phase, epoch, step); `loss` is the sum over the epoch's steps so far; `targets` are the router's, as far as
    they are measured; `seconds` and `commands` are those of the whole run so far.
    """

    settings: str
    tensors: dict[str, Tensor]
    optimiser: dict[str, Any] | None
    position: tuple[int, int, int]
    seconds: float
    commands: tuple[str, ...]
    average: dict[str, Tensor] | None = None
    updates: int = 0
    loss: float = 0.0
    targets: Tensor | None = None
    started_from: dict[str, str] | None = None


def settings_digest(recipe: Recipe) -> str:
    """sha256 of everything in a recipe that trained weights depend on: no limits, targets, thresholds or digests."""
    data, router = recipe.data, recipe.router
    parts = {
        "model": {name: value for name, value in dataclasses.asdict(recipe.model).items() if value is not None},
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
    """Writes to the side, then renames: a half-written state is never the newest, and the one before it is kept."""
    staging = path.with_suffix(".part")
    with staging.open("wb") as file:
        torch.save({f.name: getattr(state, f.name) for f in dataclasses.fields(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        path.replace(_before(path))
    staging.replace(path)


def state_exists(path: Path) -> bool:
    """Whether there is a state, be it the one before: a run can be killed between the two renames."""
    return path.exists() or _before(path).exists()


def remove_state(path: Path) -> None:
    """Removes the newest state last of all, so that what is left can always be resumed."""
    for old in (path.with_suffix(".part"), _before(path), path):
        old.unlink(missing_ok=True)


def read_state(path: Path, settings: str, report: Callable[[str], None]) -> RunState:
    """The newest state that can be read, on the CPU; `report` is told where that is not the newest one.

    Raises:
        CheckpointError: neither can be read.
        UsageError: the state of a run with other settings.
    """
    problems = []
    for file in (path, _before(path)):
        try:
            state = RunState(**torch.load(file, map_location="cpu", weights_only=True))
        except Exception as err:  # torch raises many kinds for a damaged file
            problems.append(f"{file.name}: {str(err).splitlines()[0] if str(err) else type(err).__name__}")
            continue
        for problem in problems:
            report(f"the newest state cannot be read, going on from the one before it ({problem})")
        _check_settings(state, settings, file)
        return state
    raise CheckpointError(f"the run's state cannot be read: {'; '.join(problems)}", where=str(path), remedy=_AFRESH)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}.before{path.suffix}")


def _check_settings(state: RunState, settings: str, file: Path) -> None:
    if state.settings != settings:
        raise UsageError(
            "the unfinished run was started with other settings than the recipe has now",
            where=str(file),
            remedy=f"restore model, branches, router, train and preprocessing in the recipe, or {_AFRESH}",
        )
