"""A training run: dense, adaptive, router, one after the other; resumable at any step, bit for bit on a CPU.

Everything random in a step is drawn from a generator seeded by (seed, phase, epoch, step), so a resumed run needs no
random state, only weights, optimiser and position.
"""

from __future__ import annotations

import csv
import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from athe_export.errors import TrainingError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import load_tensors, tensors_of
from athe_export.model.heads import head_importance, rank_heads
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import PhaseSpec, TrainSpec
from athe_export.training.images import ImageSet, augment, to_input
from athe_export.training.phases import (
    Loss,
    adaptive_loss,
    branch_correct,
    dense_loss,
    router_loss,
    router_targets,
)
from athe_export.training.state import RunState, read_state, settings_digest, write_state

SAVE_SECONDS = 45.0
Report = Callable[[str], None]


@dataclass(frozen=True)
class Phase:
    """One entry of the plan: `kind` is dense, adaptive or router; `first` and `group` place it in its kind's schedule."""

    kind: str
    spec: PhaseSpec
    first: int
    group: int


def plan(spec: TrainSpec) -> tuple[Phase, ...]:
    """All phases in order; epochs of one kind share one cosine schedule."""
    phases: list[Phase] = []
    for kind in ("dense", "adaptive", "router"):
        specs: tuple[PhaseSpec, ...] = getattr(spec, kind)
        group, first = sum(p.epochs for p in specs), 0
        for phase in specs:
            phases.append(Phase(kind, phase, first, group))
            first += phase.epochs
    return tuple(phases)


@dataclass(frozen=True)
class Corpus:
    """The images of a run: `train` to fit, `holdout` to watch, `calibration` to rank heads on."""

    train: ImageSet
    holdout: ImageSet
    calibration: ImageSet


class TrainingRun:
    """Trains `model` in place.

    Args:
        model: with initial weights.
        folder: for the resumable state and log.csv.
        deadline: `time.monotonic()` after which the run stops in good order; None: never.
        command: as typed; kept with the state.
    """

    def __init__(
        self,
        model: AtheModel,
        corpus: Corpus,
        preprocessing: Preprocessing,
        folder: Path,
        device: torch.device,
        report: Report,
        deadline: float | None = None,
        command: str = "",
    ) -> None:
        assert model.recipe.train is not None
        self.model, self.corpus, self.preprocessing, self.folder = model.to(device), corpus, preprocessing, folder
        self.device, self.report, self.deadline = device, report, deadline
        self.spec = model.recipe.train
        self.phases = plan(self.spec)
        folder.mkdir(parents=True, exist_ok=True)
        self.position: tuple[int, int, int] = (0, 0, 0)  # phase, epoch, step to do next
        self.settings = settings_digest(model.recipe)
        self.commands: tuple[str, ...] = (command,)
        self._optimiser_state: dict[str, Any] | None = None
        self._began = self._saved = time.monotonic()
        self._seconds_before = 0.0

    @property
    def state(self) -> Path:
        """The resumable state: there while a run is unfinished."""
        return self.folder / "state.pt"

    @property
    def seconds(self) -> float:
        """Wall time spent so far, earlier parts of a resumed run included."""
        return self._seconds_before + time.monotonic() - self._began

    def resume(self) -> None:
        """Continues from the newest state.

        Raises:
            CheckpointError, UsageError: the state is damaged, or of other settings.
        """
        state = read_state(self.state, self.settings, self.device)
        load_tensors(self.model, state.tensors)
        self.position, self._optimiser_state = state.position, state.optimiser
        self._seconds_before, self.commands = state.seconds, (*state.commands, *self.commands)
        self.report(f"resumed at phase {self.position[0] + 1}, epoch {self.position[1] + 1}, step {self.position[2]}")

    def run(self) -> bool:
        """Trains to the end of the plan; False if the deadline came first.

        Raises:
            TrainingError: the loss is not finite.
        """
        for index in range(self.position[0], len(self.phases)):
            phase = self.phases[index]
            start = self.position[1:] if index == self.position[0] else (0, 0)
            if phase.kind == "adaptive" and self.model.head_rank is None:
                self._rank_heads()
            if not self._phase(index, phase, *start):
                return False
            self.position = (index + 1, 0, 0)
            self._save(None)
        return True

    def _rank_heads(self) -> None:
        size = self.model.recipe.model.image_size
        self.model.eval()
        batches = (to_input(p.to(self.device), size, self.preprocessing) for p, _ in self.corpus.calibration.batches(128))
        self.model.head_rank = rank_heads(head_importance(self.model.backbone, batches))
        self.report(f"heads ranked by attention entropy on {len(self.corpus.calibration)} calibration images")

    def _phase(self, index: int, phase: Phase, first_epoch: int, first_step: int) -> bool:
        train = self.corpus.train
        loss, parameters, targets, size = self._objective(phase)
        optimiser = torch.optim.AdamW(parameters, phase.spec.lr, weight_decay=self.spec.weight_decay)
        if self._optimiser_state:
            optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        steps = len(train) // phase.spec.batch_size or 1
        for epoch in range(first_epoch, phase.spec.epochs):
            began, first, total = time.monotonic(), first_step if epoch == first_epoch else 0, 0.0
            order = torch.randperm(len(train), generator=self._generator(index, epoch, 0))
            self._mode(phase.kind)
            for step in range(first, steps):
                lr = self._lr(phase, epoch + step / steps)
                for group in optimiser.param_groups:
                    group["lr"] = lr
                chosen = order[step * phase.spec.batch_size : (step + 1) * phase.spec.batch_size]
                value = self._step(loss, optimiser, chosen, targets, size, self._generator(index, epoch, step + 1))
                if not math.isfinite(value):
                    raise TrainingError(
                        f"loss is {value} in {phase.kind} epoch {epoch + 1}, step {step}, at learning rate {lr:.2e}",
                        where=str(self.folder),
                        remedy=self._after_divergence(),
                    )
                total += value
                self.position = (index, epoch, step + 1)
                if self._time_to_stop(optimiser):
                    return False
            seen = (steps - first) * phase.spec.batch_size
            self._log(phase, epoch, total / max(1, steps - first), seen / (time.monotonic() - began))
            self.position = (index, epoch + 1, 0)
            self._save(optimiser)
        return True

    def _after_divergence(self) -> str:
        if not self.state.exists():
            return "lower the learning rates of train in the recipe and train again"
        return (
            f"lower the learning rates of train in the recipe and train with --init {self.state}, the last good state, "
            "and another --output"
        )

    def _objective(self, phase: Phase) -> tuple[Loss, list[torch.nn.Parameter], Tensor, int]:
        size = phase.spec.image_size or self.model.recipe.model.image_size
        if phase.kind == "router":
            assert self.model.router is not None and self.model.recipe.router is not None
            self.report("measuring which branch is enough for each training image")
            targets = router_targets(self.model, self.corpus.train, self.preprocessing, self.device)
            self.report(f"{100 * float((targets > 0).float().mean()):.1f}% of them need more than the easiest branch")
            return (
                router_loss(self.model),
                list(self.model.router.parameters()),
                targets,
                self.model.recipe.router.image_size,
            )
        parameters = [p for n, p in self.model.named_parameters() if not n.startswith("router.")]
        build = dense_loss if phase.kind == "dense" else adaptive_loss
        return build(self.model, self.spec), parameters, self.corpus.train.labels, size

    def _mode(self, kind: str) -> None:
        self.model.train(kind != "router")
        if kind == "router" and self.model.router is not None:
            self.model.router.train()

    def _step(
        self,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        chosen: Tensor,
        targets: Tensor,
        size: int,
        generator: torch.Generator,
    ) -> float:
        torch.manual_seed(generator.initial_seed())
        pixels = augment(self.corpus.train.pixels[chosen], self.spec.crop_padding, self.spec.flip, generator)
        image = to_input(pixels.to(self.device), size, self.preprocessing)
        with self._autocast():
            value = loss(image, targets[chosen].to(self.device))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 1.0)
        optimiser.step()
        return float(value.detach())

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16)

    def _lr(self, phase: Phase, epoch: float) -> float:
        done = phase.first + epoch
        lr = phase.spec.lr * 0.5 * (1 + math.cos(math.pi * done / phase.group))
        if phase.kind == "dense" and done < self.spec.warmup_epochs:
            lr *= (done + 0.01) / self.spec.warmup_epochs
        return lr

    def _generator(self, phase: int, epoch: int, step: int) -> torch.Generator:
        drawn = hashlib.sha256(f"{self.spec.seed}/{phase}/{epoch}/{step}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(drawn[:8]) >> 1)

    def _time_to_stop(self, optimiser: torch.optim.Optimizer) -> bool:
        now = time.monotonic()
        stop = self.deadline is not None and now > self.deadline
        if stop or now - self._saved > SAVE_SECONDS:
            self._save(optimiser)
        return stop

    def _save(self, optimiser: torch.optim.Optimizer | None) -> None:
        saved = optimiser.state_dict() if optimiser else None
        state = RunState(self.settings, tensors_of(self.model), saved, self.position, self.seconds, self.commands)
        write_state(self.state, state)
        self._saved = time.monotonic()

    def _log(self, phase: Phase, epoch: int, loss: float, speed: float) -> None:
        names = ["dense", *(b.name for b in self.model.recipe.branches)]
        row: dict[str, Any] = {"phase": phase.kind, "epoch": phase.first + epoch + 1, "of": phase.group}
        row |= {"loss": round(loss, 4), "images_per_second": round(speed)}
        if phase.kind != "router":
            row |= self._holdout_top1(phase)
        shown = "  ".join(f"{name} {100 * row[name]:.2f}%" for name in names if name in row)
        self.report(f"{phase.kind} {row['epoch']}/{phase.group}  loss {loss:.4f}  {shown}  {speed:.0f} images/s")
        path = self.folder / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, ["phase", "epoch", "of", "loss", "images_per_second", *names])
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _holdout_top1(self, phase: Phase) -> dict[str, float]:
        """Top-1 on the held-out images: the dense path while it trains alone (at that phase's size), else every path."""
        if phase.kind == "dense":
            size = phase.spec.image_size or self.model.recipe.model.image_size
            self.model.eval()
            right = 0
            with torch.no_grad():
                for pixels, label in self.corpus.holdout.batches(256):
                    logits = self.model.backbone(to_input(pixels.to(self.device), size, self.preprocessing))
                    right += int((logits.argmax(-1).cpu() == label).sum())
            return {"dense": round(right / len(self.corpus.holdout), 4)}
        correct = branch_correct(self.model, self.corpus.holdout, self.preprocessing, self.device)
        names = ["dense", *(b.name for b in self.model.recipe.branches)]
        return {name: round(float(column.mean()), 4) for name, column in zip(names, correct.T, strict=True)}
