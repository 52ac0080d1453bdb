"""The check that every target's fp32 graphs pass after each step: torch's outputs on real images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from athe_export.branches import BranchGraphSource
from athe_export.errors import ExportError
from athe_export.preprocessing import GraphInput
from athe_export.runtime.engines import Session

MAX_ERROR = 1e-4


def require_equal(session: Session, source: BranchGraphSource, images: Iterable[GraphInput], stage: str) -> None:
    """Raises ExportError unless the session gives torch's outputs within 1e-4 on every image.

    Args:
        session: of the fp32 graph.
        source: the module that the graph was made from.
        images: what the module takes: float32 [1, 3, size, size], or pixels uint8 [1, size, size, 3].
        stage: named in the error.
    """
    for index, image in enumerate(images):
        _require_close(session.run(image), _output(source, image), index, f"{stage} of {source.role}")


def require_alike(
    made: BranchGraphSource, source: BranchGraphSource, pixels: Iterable[GraphInput], tensors: Iterable[GraphInput]
) -> None:
    """Raises ExportError unless the deployed form `made` gives the outputs of `source` within 1e-4 on every image.

    Args:
        pixels: uint8 [1, size, size, 3] each.
        tensors: the same images float32 [1, 3, size, size].
    """
    for index, (image, tensor) in enumerate(zip(pixels, tensors, strict=True)):
        _require_close(_output(made, image), _output(source, tensor), index, f"the deployed form of {source.role}")


def _output(source: BranchGraphSource, image: GraphInput) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        found: npt.NDArray[np.float32] = source.module(torch.tensor(image)).numpy()
    return found


def _require_close(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], index: int, where: str) -> None:
    error = float(np.abs(found.reshape(expected.shape) - expected).max())
    if not error <= MAX_ERROR:
        raise ExportError(
            f"differs from torch by {error:.2e} on image {index}; the most allowed is {MAX_ERROR:.0e}",
            where=where,
            remedy="this is a fault of the export, not of the recipe; please report it with the recipe",
        )
