"""Energy of an image, of the rows that a power log was joined with; every other row says that it was not measured.

`latency.timed_queries` gives the queries that a pattern of load for a power meter would run, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from athe_export.evaluation.intervals import Estimate
from athe_export.evaluation.latency import TimedRow, row_of
from athe_export.evaluation.policies import LEARNED, Policy
from athe_export.evaluation.systems import System

Joules = Mapping[TimedRow, Estimate]  # an image above idle


def energy_json(system: System, policy: Policy, joules: Joules) -> dict[str, Any]:
    """The two fields of a row: joules an image with their interval, or why there are none.

    What no device runs, such as an oracle's choice, has no energy: the log knows a routed row at its own mix alone.
    """
    if not joules:
        return {"energy_j": None, "energy_not_measured": "no power log was given"}
    found = joules.get(row_of(system, policy)) if policy.name == LEARNED or not policy.router else None
    if found is None:
        return {"energy_j": None, "energy_not_measured": "the power log has no such row"}
    return {"energy_j": found.to_json(), "energy_not_measured": None}
