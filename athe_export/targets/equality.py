"""The check that every target's fp32 graphs pass after each step: torch's outputs on real images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from athe_export.branches import BranchGraphSource
from athe_export.errors import ExportError
from athe_export.preprocessing import Tensor
from athe_export.runtime.predictor import Session

MAX_ERROR = 1e-4


def require_equal(session: Session, source: BranchGraphSource, images: Iterable[Tensor], stage: str) -> None:
    """Raises ExportError unless the session gives torch's outputs within 1e-4 on every image.

    Args:
        session: of the fp32 graph.
        source: the module that the graph was made from.
        images: float32 [1, 3, size, size].
        stage: named in the error.
    """
    for index, image in enumerate(images):
        with torch.no_grad():
            expected = source.module(torch.from_numpy(image)).numpy()
        error = float(np.abs(session.run(image).reshape(expected.shape) - expected).max())
        if not error <= MAX_ERROR:
            raise ExportError(
                f"differs from torch by {error:.2e} on image {index}; the most allowed is {MAX_ERROR:.0e}",
                where=f"{stage} of {source.role}",
                remedy="this is a fault of the export, not of the recipe; please report it with the recipe",
            )
