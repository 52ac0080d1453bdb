"""`train --init`: published state dicts of another head and another size start a model, and all that did not fit is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from athe_export.errors import CheckpointError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import save_checkpoint, tensors_of
from athe_export.recipe import Recipe, load_recipe
from athe_export.training.train import train_recipe
from athe_export.training.transfer import transfer
from tests.conftest import TINY
from tests.unit.test_checkpoint import hugging_face

IMAGENET = {
    "model": TINY["model"] | {"image_size": 56, "classes": 1000},
    "router": None,
    "branches": [{"name": "plain", "heads": 3}],
}


@pytest.fixture
def recipe(tiny: Callable[..., Path]) -> Recipe:
    return load_recipe(tiny()).recipe


@pytest.fixture
def published(tiny: Callable[..., Path]) -> dict[str, Tensor]:
    """Stands in for an ImageNet state dict: 1000 classes, a 7x7 grid where the recipe has 4x4."""
    model = AtheModel(load_recipe(tiny(**IMAGENET)).recipe)
    model.initialise(11)
    return {n: t.contiguous() for n, t in tensors_of(model).items()}


def started(recipe: Recipe, path: Path) -> tuple[AtheModel, str]:
    model = AtheModel(recipe)
    model.initialise(0)
    return model, "\n".join(transfer(model, path).lines())


@pytest.mark.parametrize("names", ["timm", "hugging face vit", "hugging face deit", "wrapped"])
def test_a_state_dict_of_another_head_and_grid_starts_the_backbone(
    names: str, recipe: Recipe, published: dict[str, Tensor], tmp_path: Path
) -> None:
    stored = {
        "hugging face vit": hugging_face(published) | {"vit.pooler.dense.weight": torch.zeros(24, 24)},
        "hugging face deit": hugging_face(published, "deit."),
    }.get(names, published)
    path = tmp_path / "start.pth"
    torch.save({"model": stored} if names == "wrapped" else stored, path)
    model, said = started(recipe, path)
    taken = tensors_of(model)
    for name, tensor in published.items():
        if not name.startswith(("head.", "pos_embed")):
            assert torch.equal(taken[name], tensor), name
    assert "head.weight: 1000x24 there, 100x24 here; starts afresh" in said
    assert "head.bias: 1000 there, 100 here; starts afresh" in said
    assert "pos_embed: interpolated from 7x7 to 4x4 patches" in said
    assert "not in it, start afresh: scorers.simple (2), scorers.complex (2), router" in said
    assert ("of no use here: pooler" in said) == (names == "hugging face vit")
    assert said.startswith("42 of ")


def test_interpolated_positions_are_those_that_the_network_itself_uses_at_that_size(
    recipe: Recipe, published: dict[str, Tensor], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    save_file(published, tmp_path / "start.safetensors")
    model, _ = started(recipe, tmp_path / "start.safetensors")
    larger = AtheModel(load_recipe(tiny(**IMAGENET)).recipe)
    larger.backbone.load_state_dict(published)
    image = torch.zeros(1, 3, 32, 32)
    torch.testing.assert_close(model.backbone.embed(image), larger.backbone.embed(image))


def test_what_there_is_too_much_of_is_listed_by_its_place(recipe: Recipe, tmp_path: Path, tiny: Callable[..., Path]) -> None:
    deeper = load_recipe(tiny(model=TINY["model"] | {"depth": 5})).recipe
    model = AtheModel(deeper)
    model.initialise(1)
    model.head_rank = ((0, 1, 2),) * 5
    save_checkpoint(tmp_path / "a.safetensors", model, {})
    _, said = started(recipe, tmp_path / "a.safetensors")
    assert "of no use here: blocks.3 (12), blocks.4 (12)" in said
    assert "head_rank: measured anew before the adaptive phases" in said


def test_the_head_rank_is_taken_where_no_phase_of_the_plan_changes_the_branches(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    train = {"dense": [], "adaptive": [], "router": [{"epochs": 1}]}
    recipe = load_recipe(tiny(train=train)).recipe
    stored = AtheModel(recipe)
    stored.initialise(1)
    stored.head_rank = ((2, 0, 1),) * recipe.model.depth
    save_checkpoint(tmp_path / "a.safetensors", stored, {})
    model, said = started(recipe, tmp_path / "a.safetensors")
    assert model.head_rank == stored.head_rank and "\n" not in said
    for phases in ({"adaptive": [{"epochs": 1}]}, {"dense": [{"epochs": 1}], "router": []}):
        other = load_recipe(tiny(train=train | phases)).recipe
        model, said = started(other, tmp_path / "a.safetensors")
        assert model.head_rank is None and "head_rank: measured anew" in said


def test_a_checkpoint_of_the_same_recipe_is_taken_whole_and_without_remarks(recipe: Recipe, tmp_path: Path) -> None:
    model = AtheModel(recipe)
    model.initialise(5)
    save_checkpoint(tmp_path / "a.safetensors", model, {})
    _, said = started(recipe, tmp_path / "a.safetensors")
    count = len(tensors_of(model))
    assert said == f"{count} of {count} tensors start from a.safetensors"


def test_a_distilled_deit_is_refused_with_the_reason(recipe: Recipe, published: dict[str, Tensor], tmp_path: Path) -> None:
    for names, extra in (("timm", "dist_token"), ("hf", "deit.embeddings.distillation_token")):
        path = tmp_path / f"{names}.safetensors"
        stored = published if names == "timm" else hugging_face(published, "deit.")
        save_file(stored | {extra: torch.zeros(1, 1, 24)}, path)
        with pytest.raises(CheckpointError, match="distilled DeiT with a second class token") as caught:
            started(recipe, path)
        assert "deit_tiny_patch16_224" in caught.value.remedy


def test_a_checkpoint_of_another_network_is_refused_and_says_what_is_where(
    recipe: Recipe, published: dict[str, Tensor], tmp_path: Path
) -> None:
    wider = {n: torch.cat([t, t], -1).contiguous() for n, t in published.items() if t.dim()}
    save_file(wider, tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match="nothing in it fits the backbone") as caught:
        started(recipe, tmp_path / "wide.safetensors")
    assert "blocks.0.norm1.weight: 48 there, 24 here" in caught.value.what


def test_positions_without_a_square_grid_start_afresh(recipe: Recipe, published: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(published | {"pos_embed": torch.zeros(1, 13, 24)}, tmp_path / "odd.safetensors")
    _, said = started(recipe, tmp_path / "odd.safetensors")
    assert "pos_embed: 1x13x24 there, 1x17x24 here; starts afresh" in said


def test_training_starts_from_it_by_one_command(
    tiny: Callable[..., Path], published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("athe_export.data.shapes.SIZES", {"train": 30_000, "holdout": 20, "test": 20})
    start = tmp_path / "imagenet.safetensors"
    save_file(published, start)
    phase = [{"epochs": 1, "batch_size": 8}]
    file = load_recipe(tiny(train={"images": 8, "dense": phase, "adaptive": phase, "router": phase}))
    lines: list[str] = []
    result = train_recipe(file, init=start, output=tmp_path / "a.safetensors", report=lines.append)
    assert result.complete and "pos_embed: interpolated" in lines[0]


def test_a_resumed_run_says_that_it_does_not_read_the_checkpoint_again(
    tiny: Callable[..., Path], published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("athe_export.data.shapes.SIZES", {"train": 30_000, "holdout": 20, "test": 20})
    start = tmp_path / "imagenet.safetensors"
    save_file(published, start)
    file = load_recipe(tiny(train={"images": 16, "dense": [{"epochs": 1, "batch_size": 8}], "adaptive": []}))
    lines: list[str] = []
    for resume in (False, True):
        output = tmp_path / "a.safetensors"
        train_recipe(file, init=start, output=output, resume=resume, max_minutes=0, report=lines.append)
    assert "imagenet.safetensors is not read again: the run goes on from its own state" in lines
