"""`--init`: another checkpoint's weights into a model, as far as they fit; all that does not is said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from athe_export.errors import CheckpointError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import RANK, grouped, load_tensors, read_checkpoint, tensors_of
from athe_export.model.deit import resize_positions
from athe_export.model.structured import Batches, narrowed

POSITIONS = "pos_embed"


@dataclass(frozen=True)
class Transfer:
    """What came over from a file into a model of `of` tensors: `taken` as they are; `remarks`, a line each, on the rest."""

    name: str
    sha256: str
    taken: int
    of: int
    remarks: tuple[str, ...]

    def lines(self) -> list[str]:
        return [f"{self.taken} of {self.of} tensors start from {self.name}", *(f"  {r}" for r in self.remarks)]


@torch.no_grad()
def transfer(model: AtheModel, path: Path, images: Batches = ()) -> Transfer:
    """Starts `model` from a checkpoint file: timm's or Hugging Face's of any number of classes, ours, or a run's state.

    A tensor of the same name and shape is taken. A position embedding of another square grid is interpolated. What has
    another shape, like the head of another number of classes, starts afresh. The head rank is measured, and taken only
    where no phase of the plan changes what it was measured on. Where the recipe asks for it, a wider DeiT is pruned to the
    model's sizes first.

    Args:
        images: normalised, with labels, for the importance of channels.

    Raises:
        CheckpointError: the file cannot be read, is a distilled DeiT, or nothing in it fits the backbone.
    """
    checkpoint, own, remarks = read_checkpoint(path), tensors_of(model), []
    if model.recipe.checkpoint.structured is not None:
        checkpoint, said = narrowed(checkpoint, model.recipe, images, str(path))
        remarks += [said] if said else []
    found = checkpoint.tensors
    fits = {n: t for n, t in found.items() if n in own and own[n].shape == t.shape}
    resized = _positions(found.get(POSITIONS), own[POSITIONS]) if POSITIONS in own and POSITIONS not in fits else None
    if resized is not None:
        fits[POSITIONS] = resized
        remarks.append(f"{POSITIONS}: interpolated from {_grid(found[POSITIONS])} to {_grid(own[POSITIONS])} patches")
    remarks += [
        f"{n}: {_shape(t)} there, {_shape(own[n])} here; starts afresh"
        for n, t in found.items()
        if n in own and n not in fits
    ]
    if not any(n.startswith(("patch_embed.", "blocks.", "stages.")) for n in fits):
        lines = "".join(f"\n  {r}" for r in remarks)
        raise CheckpointError(
            f"nothing in it fits the backbone of the recipe{lines}",
            where=str(path),
            remedy="give a state dict of timm or Hugging Face of the same architecture, or correct model in the recipe",
        )
    if left := [n for n in found if n not in own and n != RANK]:
        remarks.append(f"of no use here: {grouped(left)}")
    if RANK in found:
        fitting = found[RANK].shape == (model.recipe.model.depth, model.recipe.model.heads)
        if model.recipe.train is not None and not model.recipe.train.fits_branches and fitting:
            fits[RANK] = found[RANK]
        else:
            remarks.append(f"{RANK}: measured anew before the adaptive phases")
    if absent := [n for n in own if n not in found]:
        remarks.append(f"not in it, start afresh: {grouped(absent)}")
    load_tensors(model, own | fits)
    assert checkpoint.sha256 is not None
    return Transfer(path.name, checkpoint.sha256, len(fits.keys() & own.keys()), len(own), tuple(remarks))


def _positions(found: Tensor | None, own: Tensor) -> Tensor | None:
    """An embedding [1, 1 + n x n, dim] for the grid of `own`; None where it is not one of the same width."""
    if found is None or found.dim() != 3 or found.shape[2] != own.shape[2]:
        return None
    patches = found.shape[1] - 1
    return resize_positions(found, own.shape[1] - 1) if patches > 0 and math.isqrt(patches) ** 2 == patches else None


def _grid(positions: Tensor) -> str:
    side = math.isqrt(positions.shape[1] - 1)
    return f"{side}x{side}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
