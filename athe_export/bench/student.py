"""Student's interval: how far the mean of a few measurements may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# 97.5% quantiles of Student's t of 1 to 10 degrees of freedom
_T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)


def mean_margin(values: Sequence[float]) -> float:
    """Half of the 95% interval around the mean of a few measurements (Gosset, The probable error of a mean, Biometrika 6,
    1908). From 12 values on it is that of 11, which is wider.

    Raises:
        ValueError: less than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval takes 2 values or more, not {len(values)}")
    return _T[min(len(values) - 1, len(_T)) - 1] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
