"""A training run: dense, adaptive, router, one after the other; resumable at any step, bit for bit on a CPU.

Everything random in a step is drawn from a generator seeded by (seed, phase, epoch, step), so a resumed run needs no
random state, only weights, their average, optimiser and position.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from athe_export.data.source import Progress, no_progress
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import load_tensors, tensors_of
from athe_export.model.heads import head_importance, rank_heads
from athe_export.preprocessing import Preprocessing
from athe_export.training.average import WeightAverage
from athe_export.training.holdout import Holdout
from athe_export.training.images import ImageSet, to_input
from athe_export.training.log import Meter, Report, TrainingLog
from athe_export.training.losses import EpochLosses
from athe_export.training.objective import Corpus, Objective, branch_objective, router_objective
from athe_export.training.plan import Phase, generator_of, learning_rate, plan
from athe_export.training.router_images import router_targets, targets_said, views_of
from athe_export.training.state import RunState, read_state, settings_digest, write_state

SAVE_SECONDS = 40.0  # between two states, within an epoch
EPOCH_SAVE_SECONDS = 10.0  # the same at its end: looking at the held-out images can take minutes
MEASURED_AT_ONCE = 1024  # router images between two chances to save or stop


class TrainingRun:
    """Trains `model` in place.

    Args:
        model: with initial weights.
        folder: for the resumable state, log.csv and curves.svg.
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
        progress: Progress = no_progress,
    ) -> None:
        assert model.recipe.train is not None
        self.model, self.corpus, self.preprocessing, self.folder = model.to(device), corpus.to(device), preprocessing, folder
        self.device, self.report, self.deadline, self.progress = device, report, deadline, progress
        if model.router is not None:  # its convolutions are quicker so; now, before anything refers to its weights
            model.router.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec = model.recipe.train
        self.phases = plan(self.spec)
        folder.mkdir(parents=True, exist_ok=True)
        self._holdout = Holdout(model, self.corpus.holdout, preprocessing, device)
        self.log = TrainingLog(folder, self._holdout.names)
        self.position: tuple[int, int, int] = (0, 0, 0)  # phase, epoch, step to do next
        self.settings = settings_digest(model.recipe)
        self.commands: tuple[str, ...] = (command,)
        self.started_from: dict[str, str] | None = None  # file and sha256 of another checkpoint
        self._average: WeightAverage | None = None
        self._targets = torch.zeros(0, device=device)  # the router's, as far as they are measured
        self._optimiser_state: dict[str, Any] | None = None  # of the state that was resumed, until it is used
        self._losses = EpochLosses(self.state, device)
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
        state = read_state(self.state, self.settings, self.report)
        load_tensors(self.model, state.tensors)
        if state.average is not None:
            self._average = WeightAverage(self.model, self.spec.ema)
            self._average.restore(state.average, state.updates)
        self.position, self._optimiser_state = state.position, state.optimiser
        self._losses.begin(state.loss, state.position[2])
        self.started_from = state.started_from
        self._targets = self._targets if state.targets is None else state.targets.to(self.device)
        self._seconds_before, self.commands = state.seconds, (*state.commands, *self.commands)
        self.report(f"resumed at phase {self.position[0] + 1}, epoch {self.position[1] + 1}, step {self.position[2]}")

    def run(self) -> bool:
        """Trains to the end of the plan; False if the deadline came first. The model then has the weights to keep.

        Raises:
            TrainingError: the loss is not finite.
        """
        for index in range(self.position[0], len(self.phases)):
            phase = self.phases[index]
            start = self.position[1:] if index == self.position[0] else (0, 0)
            if self.spec.ema and self._average is None:
                self._average = WeightAverage(self.model, self.spec.ema)
            finished = self._phase(index, phase, *start)
            if self._average is not None and (phase.ends_kind or not finished):
                self._average.take()
                self._average = None
            if not finished:
                return False
            self.position = (index + 1, 0, 0)
            self._save(None)
        return True

    def _phase(self, index: int, phase: Phase, first_epoch: int, first_step: int) -> bool:
        if phase.kind == "router":
            if self.model.head_rank is None:  # a plan without adaptive phases
                self._rank_heads()
            views = views_of(self.corpus.router, self.spec)
            if not self._measure(views):
                return False
            objective = router_objective(phase, self.model, ImageSet(views.pixels, self._targets))
        elif phase.kind == "router_features":
            objective = router_objective(phase, self.model, self.corpus.train)
        else:
            objective = branch_objective(phase, self.model, self.corpus.train)
        self.model.backbone.stochastic_depth = 0.0 if phase.spec.light else self.spec.stochastic_depth
        optimiser = torch.optim.AdamW(
            objective.parameters, phase.spec.lr, weight_decay=self.spec.weight_decay, fused=self.device.type == "cuda"
        )
        if self._optimiser_state:
            optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        for epoch in range(first_epoch, phase.spec.epochs):
            step = first_step if epoch == first_epoch else 0
            if phase.kind == "adaptive" and not step and phase.first + epoch < self.spec.rank_epochs:
                self._rank_heads()
            if not self._epoch(index, epoch, step, objective, optimiser):
                return False
        return True

    def _epoch(
        self, index: int, epoch: int, first_step: int, objective: Objective, optimiser: torch.optim.Optimizer
    ) -> bool:
        phase, steps, seed = objective.phase, objective.steps, self.spec.seed
        order = torch.randperm(len(objective.images), generator=generator_of(seed, index, epoch, 0)).to(self.device)
        meter = Meter(phase.title(epoch), steps, steps * (phase.spec.epochs - epoch - 1), self.report, self.progress)
        self._train_mode(phase)
        for step in range(first_step, steps):
            rate = learning_rate(phase, epoch + step / steps, self.spec.warmup_epochs)
            chosen = objective.chosen(order, step)
            loss = self._step(objective, optimiser, rate, chosen, generator_of(seed, index, epoch, step + 1))
            self.position = (index, epoch, step + 1)
            self._losses.add(loss, f"{phase.kind} epoch {epoch + 1}, step {step}, at learning rate {rate:.2e}")
            meter.step(step + 1, len(chosen), self._losses.mean)
            if self._time_to_stop(optimiser):
                return False
        self._losses.check()
        self._save_unless_recent(optimiser)
        self._log_epoch(objective, epoch, optimiser.param_groups[0]["lr"], meter.speed)
        self.position = (index, epoch + 1, 0)
        self._losses.begin()
        self._save_unless_recent(optimiser)
        return True

    def _step(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        rate: float,
        chosen: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """One step on the chosen images; its loss, which nothing has waited for yet."""
        torch.manual_seed(generator.initial_seed())  # of what the model draws: tokens and skipped blocks
        image, targets = objective.batch(chosen, self.preprocessing, self.model.recipe.model.classes, generator)
        # a CPU's depthwise convolutions are slower in bfloat16 than in float32
        half = self.device.type == "cuda" or not objective.phase.kind.startswith("router")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss = objective.loss(image, targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        if self._average is not None:
            self._average.update()
        return loss.detach()

    def _train_mode(self, phase: Phase) -> None:
        for name, part in self.model.named_children():
            part.train((name == "router") == phase.kind.startswith("router"))

    def _averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that would be kept."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _rank_heads(self) -> None:
        size, images = self.model.recipe.model.image_size, self.corpus.calibration
        self.model.eval()
        batches = (to_input(pixels, size, self.preprocessing) for pixels, _ in images.batches(128))
        with self._averaged():
            self.model.head_rank = rank_heads(head_importance(self.model.deit, batches))
        self.report(f"heads ranked by attention entropy on {len(images)} calibration images")

    def _measure(self, views: ImageSet) -> bool:
        """Finds what each router image asks for, from where it stopped; False if the deadline came first."""
        while len(self._targets) < len(views):
            part = ImageSet(*(t[len(self._targets) :][:MEASURED_AT_ONCE] for t in (views.pixels, views.labels)))
            new = router_targets(self.model, part, self.preprocessing, self.device)
            self._targets = torch.cat([self._targets, new])
            self.progress("measure which branch is enough", len(self._targets), len(views))
            if len(self._targets) < len(views) and self._time_to_stop(None):
                return False
        self.report(targets_said(self._targets, self.spec))
        return True

    def _time_to_stop(self, optimiser: torch.optim.Optimizer | None) -> bool:
        now = time.monotonic()
        stop = self.deadline is not None and now > self.deadline
        if stop or now - self._saved > SAVE_SECONDS:
            self._save(optimiser)
        return stop

    def _save_unless_recent(self, optimiser: torch.optim.Optimizer) -> None:
        if time.monotonic() - self._saved > EPOCH_SAVE_SECONDS or not self.state.exists():
            self._save(optimiser)

    def _save(self, optimiser: torch.optim.Optimizer | None) -> None:
        self._losses.check()  # what is not finite is never saved
        average = self._average
        state = RunState(
            settings=self.settings,
            tensors=tensors_of(self.model),
            optimiser=optimiser.state_dict() if optimiser else self._optimiser_state,
            position=self.position,
            seconds=self.seconds,
            commands=self.commands,
            started_from=self.started_from,
            average=average.tensors if average else None,
            updates=average.updates if average else 0,
            loss=self._losses.total,
            targets=self._targets,
        )
        write_state(self.state, state)
        self._saved = time.monotonic()

    def _log_epoch(self, objective: Objective, epoch: int, rate: float, speed: float) -> None:
        phase = objective.phase
        with self._averaged():
            reached = self._holdout.reached(phase)
        loss = self._losses.mean or 0.0
        row: dict[str, Any] = {"phase": phase.kind, "epoch": phase.first + epoch + 1, "of": phase.group}
        row |= {"image_size": objective.size, "learning_rate": f"{rate:.3g}"}
        row |= {"loss": round(loss, 4), "images_per_second": round(speed), "minutes": round(self.seconds / 60, 1)}
        self.log.add(row | reached)
        shown = "  ".join(f"{name} {100 * value:.2f}%" for name, value in reached.items())
        self.report(f"{phase.title(epoch)}  loss {loss:.4f}  {shown}  {speed:.0f} images/s")
