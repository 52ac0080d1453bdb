"""Structured pruning: which channels go, that nothing else does, and how a build and a training run take a wider file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from athe_export.data.shapes import SIZES
from athe_export.errors import CheckpointError, RecipeError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import Checkpoint, build_model, random_checkpoint, read_checkpoint
from athe_export.model.deit import DeiT
from athe_export.model.structured import importance, narrowed
from athe_export.pipeline import prepare
from athe_export.recipe import Recipe, load_recipe
from athe_export.stages import StageTimer
from athe_export.training.train import train_recipe
from tests.conftest import TINY, SilentWatch

KINDS = ("magnitude", "taylor", "hessian")
# of the tiny model's 24, 3 heads of 8 and 96
MODEL: dict[str, Any] = TINY["model"] | {"dim": 18, "mlp_ratio": 3.0}
SIZED: dict[str, Any] = {
    "model": MODEL, "router": None, "branches": [{"name": "plain", "heads": 3}],
    "checkpoint": {"path": "tiny.safetensors", "shared": True, "structured": {"importance": "taylor", "images": 16}},
    "train": {"dense": [{"epochs": 1, "batch_size": 8, "images": 16}], "adaptive": [], "images": 64, "watch_images": 16},
}  # fmt: skip


def images(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count))]


def asked(tiny: Callable[..., Path], kind: str = "magnitude", **model: Any) -> Recipe:
    checkpoint = {"path": "tiny.safetensors", "structured": {"importance": kind}}
    return load_recipe(tiny(**SIZED | {"model": MODEL | model, "checkpoint": checkpoint})).recipe


def wide(tiny: Callable[..., Path]) -> Checkpoint:
    dense = load_recipe(tiny(router=None, branches=SIZED["branches"])).recipe
    return replace(random_checkpoint(dense, 4), trained=True)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_do_nothing_go_and_the_function_stays(tiny: Callable[..., Path], kind: str) -> None:
    """Hidden channels and channels of heads whose weights are nought, as many as have to go, wherever they stand."""
    checkpoint, generator = wide(tiny), torch.Generator().manual_seed(1)
    tensors = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in checkpoint.tensors.items()}
    for block in range(3):
        p = f"blocks.{block}."
        idle = torch.randperm(96, generator=generator)[:24]
        for name in ("mlp.fc1.weight", "mlp.fc1.bias"):
            tensors[p + name][idle] = 0
        tensors[p + "mlp.fc2.weight"][:, idle] = 0
    recipe = asked(tiny, kind, dim=24)
    before, _ = build_model(
        load_recipe(tiny(router=None, branches=SIZED["branches"])).recipe, Checkpoint(tensors, None, True), ""
    )
    found, said = narrowed(Checkpoint(tensors, None, True), recipe, images(), "here")
    after, unused = build_model(recipe, found, "here")
    assert unused == () and said is not None and "hidden channels 96 to 72" in said and kind in said
    image = images()[0][0]
    torch.testing.assert_close(after.backbone(image), before.backbone(image), atol=1e-5, rtol=1e-5)


def test_a_head_loses_the_channels_that_do_nothing_and_attends_as_before(tiny: Callable[..., Path]) -> None:
    """Attention is compared by itself: the norm before it takes the mean over the width, of which channels go too."""
    checkpoint = wide(tiny)
    tensors = {n: t.clone() for n, t in checkpoint.tensors.items()}
    idle = torch.tensor([0, 5])  # of each head's 8
    rows = (idle + 8 * torch.arange(3)[:, None]).flatten()
    for block in range(3):
        p = f"blocks.{block}.attn."
        for part in range(3):
            tensors[p + "qkv.weight"][rows + 24 * part] = tensors[p + "qkv.bias"][rows + 24 * part] = 0
        tensors[p + "proj.weight"][:, rows] = 0
    for tensor in tensors.values():
        for axis, size in enumerate(tensor.shape):
            if size == 24:  # the width's last six channels
                tensor.transpose(0, axis)[18:] = 0
    found, _ = narrowed(Checkpoint(tensors, None, True), asked(tiny), [], "here")
    before, after = DeiT(replace(load_recipe(tiny()).recipe.model)), DeiT(asked(tiny).model)
    before.load_state_dict(tensors)
    after.load_state_dict(found.tensors)
    x = torch.randn(17, 18, generator=torch.Generator().manual_seed(3))
    own, _ = after.blocks[1].attn(x, 1)
    expected, _ = before.blocks[1].attn(F.pad(x, (0, 6)), 1)
    torch.testing.assert_close(own, expected[:, :18], atol=1e-6, rtol=1e-5)


def test_importance_is_what_its_formula_says(tiny: Callable[..., Path]) -> None:
    model = AtheModel(asked(tiny))
    model.initialise(0)
    backbone, (batch, labels) = model.deit.eval(), images()[0]
    weight = backbone.blocks[0].mlp.fc1.weight
    slopes = [
        torch.autograd.grad(F.cross_entropy(backbone(i[None]), j[None]), weight)[0]
        for i, j in zip(batch, labels, strict=True)
    ]
    expected = {
        "magnitude": weight.square(),
        "taylor": (weight * torch.stack(slopes).mean(0)).abs(),
        "hessian": weight.square() * torch.stack(slopes).square().mean(0) / 2,
    }
    for kind in KINDS:
        found = importance(backbone, kind, images())["blocks.0.mlp.fc1.weight"]
        torch.testing.assert_close(found, expected[kind].detach(), atol=1e-9, rtol=1e-3)


def test_a_file_of_the_recipes_own_sizes_is_taken_as_it_is(tiny: Callable[..., Path]) -> None:
    recipe = asked(tiny)
    own = replace(random_checkpoint(recipe, 1), trained=True)
    assert narrowed(own, recipe, [], "here") == (own, None)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"dim": 30}, "width 24 and 96 hidden channels there, 30 and 90 here"),
        ({"mlp_ratio": 6.0}, "cannot be pruned to the recipe's model"),
        ({"depth": 4}, "not the recipe's model with other widths"),
    ],
)
def test_a_file_that_cannot_be_pruned_to_the_recipe_is_refused(
    tiny: Callable[..., Path], model: dict[str, Any], said: str
) -> None:
    checkpoint = wide(tiny)
    with pytest.raises(CheckpointError, match=said):
        narrowed(checkpoint, asked(tiny, **model), [], "here")


@pytest.mark.parametrize("checkpoint", [{"random_seed": 1, "structured": {}}, {"random_seed": 1, "shared": True}])
def test_structured_and_shared_belong_to_a_file(tiny: Callable[..., Path], checkpoint: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="belongs to a path"):
        load_recipe(tiny(**SIZED | {"checkpoint": checkpoint}))


def test_a_build_prunes_the_file_by_its_calibration_images_and_says_what_it_left_out(tiny: Callable[..., Path]) -> None:
    prepared = prepare(load_recipe(tiny(**SIZED)), None, None, StageTimer(SilentWatch()))
    assert prepared.system.trained and prepared.system.model.deit.spec.dim == 18
    pruned, left = prepared.system.notes
    assert "by taylor importance: width 24 to 18, channels of a head 8 to 6, hidden channels 96 to 54" in pruned
    assert left.endswith("without a use in this recipe: router (137), scorers.complex (2), scorers.simple (2)")


def test_training_starts_from_the_pruned_file_and_writes_the_smaller_model(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("athe_export.data.shapes.SIZES", SIZES | {"holdout": 40, "test": 40})
    file, said = load_recipe(tiny(**SIZED)), []
    result = train_recipe(
        file, init=file.resolve("tiny.safetensors"), output=tmp_path / "a.safetensors", device="cpu", report=said.append
    )
    assert result.complete and any("width 24 to 18" in line for line in said)
    assert read_checkpoint(result.path).tensors["blocks.0.mlp.fc1.weight"].shape == (54, 18)
    assert narrowed(read_checkpoint(result.path), file.recipe, [], "here")[1] is None
