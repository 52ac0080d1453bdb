"""The branches of a recipe as torch modules, for the scripts beside this one that compare graphs of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from athe_export.branches import BranchGraphSource, build_branch
from athe_export.model.checkpoint import build_model, random_checkpoint, read_checkpoint
from athe_export.preprocessing import Pixels, Preprocessing
from athe_export.recipe import BranchSpec, load_recipe

IMAGES = 8


def recipe_branches(path: Path, full_size: bool, dense: bool) -> tuple[list[BranchGraphSource], list[Pixels], Preprocessing]:
    """The branches, noise in place of images, uint8 [1, size, size, 3] each, and how the recipe normalises images.

    Args:
        path: the recipe. Its checkpoint is used where the file exists; without it weights are random, and so are the
            biases and LayerNorm's scales, which a fresh model would have at 0 and 1.
        full_size: DeiT-Tiny/16 at 224 pixels, of random weights, in place of the recipe's model.
        dense: the unpruned backbone as a further branch.
    """
    file = load_recipe(path)
    recipe = file.recipe
    weights = file.resolve(recipe.checkpoint.path) if recipe.checkpoint.path else None
    if full_size:
        tiny = dataclasses.replace(recipe.model, image_size=224, patch=16, dim=192, depth=12)
        recipe, weights = dataclasses.replace(recipe, model=tiny), None
    checkpoint = read_checkpoint(weights) if weights and weights.exists() else random_checkpoint(recipe, 0)
    model, _ = build_model(recipe, checkpoint, str(weights))
    if not checkpoint.trained:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (p for p in model.parameters() if p.ndim == 1):
                tensor += torch.randn(tensor.shape, generator=generator) / 10
    model.head_rank = model.head_rank or (tuple(range(recipe.model.heads)),) * recipe.model.depth
    size, branches = recipe.model.image_size, list(recipe.branches)
    if dense:
        branches.append(BranchSpec("dense", recipe.model.heads))
    images = [np.random.RandomState(i).randint(0, 256, (1, size, size, 3)).astype(np.uint8) for i in range(IMAGES)]
    return [build_branch(model, branch) for branch in branches], images, Preprocessing(**vars(recipe.data.preprocessing))
