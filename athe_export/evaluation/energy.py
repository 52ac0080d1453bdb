"""Energy of an image, where a power log was recorded while times were taken.

None is read yet: every row says that nothing was measured. Each latency cell holds when its run `started` and `ended`, in
seconds since 1970, so that a log of a run can be laid beside it.
"""

from __future__ import annotations

from typing import Any

NOT_MEASURED = "no power log was given"


def energy_json() -> dict[str, Any]:
    """The two fields of a row."""
    return {"energy_mj": None, "energy_not_measured": NOT_MEASURED}
