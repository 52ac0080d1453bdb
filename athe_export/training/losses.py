"""The losses of an epoch's steps: their sum, and a stop where one is not finite, without waiting for a device every step."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from athe_export.errors import TrainingError

CHECK_STEPS = {"cpu": 1, "cuda": 50}  # after how many a device is waited for, to see whether its losses are finite


class EpochLosses:
    """The losses of one epoch after the other.

    Args:
        state: file of the run's resumable state, which a remedy names where it is there.
    """

    def __init__(self, state: Path, device: torch.device) -> None:
        self._state, self._check_steps = state, CHECK_STEPS[device.type]
        self._unchecked: list[tuple[str, Tensor]] = []  # the latest steps
        self.begin()

    def begin(self, total: float = 0.0, steps: int = 0) -> None:
        """Begins an epoch, or goes on with one of which `steps` are done, with losses that add up to `total`."""
        self.total, self._steps = total, steps  # of those before the latest

    @property
    def mean(self) -> float | None:
        """Of the epoch's steps so far, as far as they were waited for."""
        return self.total / self._steps if self._steps else None

    def add(self, loss: Tensor, said: str) -> None:
        """The loss of a step, which nothing has waited for yet.

        Args:
            said: which step it is; named in the error.

        Raises:
            TrainingError: as `check`, which it comes to after some steps.
        """
        self._unchecked.append((said, loss))
        if len(self._unchecked) >= self._check_steps:
            self.check()

    def check(self) -> None:
        """Adds the latest losses to the epoch's sum; on an accelerator this waits for it.

        Raises:
            TrainingError: one is not finite.
        """
        if not self._unchecked:
            return
        losses = torch.stack([loss for _, loss in self._unchecked]).tolist()
        for (said, _), loss in zip(self._unchecked, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(f"loss is {loss} in {said}", where=str(self._state.parent), remedy=self._remedy())
            self.total += loss
        self._steps += len(losses)
        self._unchecked.clear()

    def _remedy(self) -> str:
        lower = "lower the learning rates of train in the recipe and train"
        if not self._state.exists():
            return f"{lower} again"
        return f"{lower} with --init {self._state}, the last good state, and another --output"
