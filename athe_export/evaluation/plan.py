"""How much of everything is measured: the whole experiment, or one of minutes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from athe_export.bench.load_pattern import FULL_POWER, QUICK_POWER, PowerPlan
from athe_export.bench.protocol import Plan


@dataclass(frozen=True)
class EvaluationPlan:
    """The size of an evaluation.

    Attributes:
        name: `full` or `quick`; said in every output.
        images: of the recipes' gate split, its first ones; None: all.
        subset_each: simple images of the balanced subset, and as many complex ones.
        robustness_images: drawn from these for every corruption and strength.
        runs: of all timed rows, interleaved each.
        latency: how long such a run is.
        power: the pattern of load, where a power log is given.
        photos: images that timed rows see.
        gate_images: gate images of a bundle that has to be built; None: the recipe's own.
        fit_images: held-out images that a router's threshold is fitted on in such a bundle; None: the recipe's own.
        one_system: of each recipe only the target that `run` takes, in the first precision that it has.
        seed: of every draw.
    """

    name: str
    images: int | None
    subset_each: int
    robustness_images: int
    runs: int
    latency: Plan
    power: PowerPlan = FULL_POWER
    photos: int = 64
    gate_images: int | None = None
    fit_images: int | None = None
    one_system: bool = False
    seed: int = 0

    @property
    def quick(self) -> bool:
        return self.name == "quick"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# five runs have together the 1,024 queries and the 60 seconds of a row that `bench --full` asks for
FULL = EvaluationPlan(
    "full", None, 500, 2000, 5, Plan(queries=205, row_seconds=12.0, rounds=6, slice_s=0.1)
)  # fmt: skip
QUICK = EvaluationPlan(
    "quick",
    500,
    100,
    200,
    5,
    Plan(seconds=4.0, queries=5, rounds=5, slice_s=0.02),
    QUICK_POWER,
    gate_images=500,
    fit_images=1000,
    one_system=True,
)
