"""The plan of a run: its phases in order, the learning rate at each point, and where a step's random numbers come from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from athe_export.recipe import PhaseSpec, TrainSpec

KINDS = ("dense", "adaptive", "router_features", "router")


@dataclass(frozen=True)
class Phase:
    """One entry of the plan: `kind` is one of KINDS; `first` and `group` place it in its kind's schedule."""

    kind: str
    spec: PhaseSpec
    first: int
    group: int

    @property
    def ends_kind(self) -> bool:
        """Whether it is the last of its kind."""
        return self.first + self.spec.epochs == self.group

    def title(self, epoch: int) -> str:
        """One of its epochs, counted over its kind: `dense 3/14`."""
        return f"{self.kind} {self.first + epoch + 1}/{self.group}"


def plan(spec: TrainSpec) -> tuple[Phase, ...]:
    """All phases in order; epochs of one kind share one cosine schedule."""
    phases: list[Phase] = []
    for kind in KINDS:
        specs: tuple[PhaseSpec, ...] = getattr(spec, kind)
        group, first = sum(p.epochs for p in specs), 0
        for phase in specs:
            phases.append(Phase(kind, phase, first, group))
            first += phase.epochs
    return tuple(phases)


def learning_rate(phase: Phase, epoch: float, warmup_epochs: float) -> float:
    """Half a cosine over the kind's epochs, with linear warm-up at the start of the dense phases; `epoch` is the phase's."""
    done = phase.first + epoch
    rate = phase.spec.lr * 0.5 * (1 + math.cos(math.pi * done / phase.group))
    if phase.kind == "dense" and done < warmup_epochs:
        rate *= (done + 0.01) / warmup_epochs
    return rate


def generator_of(seed: int, *place: int | str) -> torch.Generator:
    """The source of everything random at a place of the plan, such as (phase, epoch, step); on the CPU on any device."""
    drawn = hashlib.sha256("/".join(map(str, (seed, *place))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(drawn[:8]) >> 1)
