"""How much each layer suffers from int8: one layer, or block, quantized alone and all others float.

The ratio of signal to quantization noise of the network's output orders the layers, as in Pandey et al., A Practical Mixed
Precision Algorithm for Post-Training Quantization, 2023 (arXiv:2302.05397), phase 1: it needs no labels and settles on few
images, where a top-1 of single layers would be noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from athe_export.data.source import Progress
from athe_export.errors import ExportError
from athe_export.precision.subject import Clock, Distance, Subject, TimeUp, distance

_BLOCK = re.compile(r"(blocks\.\d+|stages\.\d+\.\d+)\.")


@dataclass(frozen=True)
class Sensitivity:
    """What it does to a branch that the layers of one group alone are int8; `distance` None: there is no such graph."""

    name: str
    layers: tuple[str, ...]
    distance: Distance | None
    error: str | None = None

    @property
    def noise(self) -> float:
        """Power of the noise over that of the signal; nothing is known of what cannot be quantized alone: -1."""
        return -1.0 if self.distance is None else self.distance.noise

    def to_json(self) -> dict[str, Any]:
        found = {"sqnr_db": None, "agreement": None} if self.distance is None else vars(self.distance)
        return {"name": self.name, "layers": list(self.layers), **found} | ({"error": self.error} if self.error else {})


@dataclass(frozen=True)
class BranchSensitivity:
    """A branch's groups, the most sensitive first, and all of them int8 at once.

    `images` are those measured on; `not_measured` names the groups that the time did not suffice for.
    """

    role: str
    images: int
    together: Distance | None
    ranked: tuple[Sensitivity, ...]
    not_measured: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "together": None if self.together is None else vars(self.together),
            "ranked": [row.to_json() for row in self.ranked],
            "not_measured": list(self.not_measured),
        }


def groups_of(layers: Iterable[str], by: str) -> dict[str, tuple[str, ...]]:
    """Layers by group, in the order they run in: each on its own (`layer`), or those of a transformer block together."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        block = _BLOCK.match(layer) if by == "block" else None
        found.setdefault(block[1] if block else layer, []).append(layer)
    return {name: tuple(own) for name, own in found.items()}


def measure(subject: Subject, by: str, clock: Clock, progress: Progress) -> BranchSensitivity:
    """Quantizes every group of a branch alone, and holds the graph against fp32 on the branch's held-out images.

    Time that is up ends it in order: what was not reached is named.
    """
    groups = groups_of(subject.layers, by)
    rows: list[Sensitivity] = []
    together = None
    try:
        step = f"{subject.role}: sensitivity"
        expected = subject.logits(subject.fp32, clock, _unsaid, step)
        together = _together(subject, expected, clock)
        for index, (name, layers) in enumerate(groups.items()):
            progress(step, index, len(groups))
            clock.check()
            others = tuple(layer for layer in subject.layers if layer not in layers)
            try:
                found = subject.logits(subject.session(others), clock, _unsaid, step)
                rows.append(Sensitivity(name, layers, distance(expected, found)))
            except ExportError as err:
                rows.append(Sensitivity(name, layers, None, str(err)))
        progress(step, len(groups), len(groups))
    except TimeUp:
        pass
    left = tuple(list(groups)[len(rows) :])
    return BranchSensitivity(subject.role, len(subject.labels), together, tuple(sorted(rows, key=lambda r: -r.noise)), left)


def rank(found: Iterable[BranchSensitivity], shares: Mapping[str, float]) -> tuple[str, ...]:
    """Groups of a target, the most sensitive first.

    A name stands for its layer in every branch, so its noise is that of the branches, weighted by the `shares` of images
    that they get. Groups without a measurement follow in the order they run in.
    """
    noise: dict[str, float] = {}
    left: list[str] = []
    for branch in found:
        left += branch.not_measured
        for row in branch.ranked:
            if row.distance is None:
                left.append(row.name)
            else:
                noise[row.name] = noise.get(row.name, 0.0) + shares[branch.role] * row.noise
    ranked = sorted(noise, key=lambda name: -noise[name])
    return (*ranked, *(name for name in dict.fromkeys(left) if name not in noise))


def _together(subject: Subject, expected: Any, clock: Clock) -> Distance | None:
    """Every layer int8; None where there is no such graph."""
    try:
        return distance(expected, subject.logits(subject.session(()), clock, _unsaid, ""))
    except ExportError:
        return None


def _unsaid(step: str, done: int, total: int) -> None:
    """Progress within one graph, which is over in seconds."""
