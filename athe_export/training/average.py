"""The moving average of a model's weights, which is what is kept where a recipe asks for one.

Polyak and Juditsky, 1992, in the exponential form that is usual for networks (Tarvainen and Valpola, Mean teachers,
2017); the decay starts low, so that the first weights are soon forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import tensors_of


class WeightAverage:
    """Follows every floating-point tensor of `model`, running statistics included."""

    def __init__(self, model: AtheModel, decay: float) -> None:
        live = {n: t for n, t in tensors_of(model).items() if t.is_floating_point()}
        self.decay, self.updates = decay, 0
        self._live = list(live.values())
        self.tensors: dict[str, Tensor] = {n: t.clone() for n, t in live.items()}

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Goes on from a saved average."""
        for name, own in self.tensors.items():
            own.copy_(tensors[name])
        self.updates = updates

    def update(self) -> None:
        """Moves towards the model's weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        get_ema_multi_avg_fn(decay)(list(self.tensors.values()), self._live, self.updates)

    @torch.no_grad()
    def take(self) -> None:
        """Puts the average into the model."""
        for live, own in zip(self._live, self.tensors.values(), strict=True):
            live.copy_(own)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights within, and its own again afterwards."""
        kept = [t.clone() for t in self._live]
        self.take()
        try:
            yield
        finally:
            with torch.no_grad():
                for live, own in zip(self._live, kept, strict=True):
                    live.copy_(own)
