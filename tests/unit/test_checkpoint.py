"""Checkpoint files in, under each project's names, and strictness about every tensor."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from athe_export.errors import CheckpointError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import build_model, read_checkpoint, save_checkpoint, tensors_of
from athe_export.recipe import Recipe, load_recipe
from tests.conftest import TINY

DENSE = {"router": None, "branches": [{"name": "plain", "heads": 3}]}


@pytest.fixture
def dense(tiny: Callable[..., Path]) -> Recipe:
    return load_recipe(tiny(**DENSE)).recipe


@pytest.fixture
def adaptive(tiny: Callable[..., Path]) -> Recipe:
    return load_recipe(tiny()).recipe


def weights(recipe: Recipe, seed: int = 5) -> dict[str, Tensor]:
    model = AtheModel(recipe)
    model.initialise(seed)
    return {n: t.contiguous() for n, t in tensors_of(model).items()}


def hugging_face(tensors: dict[str, Tensor], prefix: str = "vit.") -> dict[str, Tensor]:
    """The same weights under transformers' ViTForImageClassification names."""
    renamed = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{prefix}encoder.layer.{match[1]}.attention.attention.{part}.{match[2]}"] = value.contiguous()
            continue
        for old, new in (
            (r"^cls_token$", f"{prefix}embeddings.cls_token"),
            (r"^pos_embed$", f"{prefix}embeddings.position_embeddings"),
            (r"^patch_embed\.proj\.", f"{prefix}embeddings.patch_embeddings.projection."),
            (r"^blocks\.(\d+)\.norm1\.", rf"{prefix}encoder.layer.\1.layernorm_before."),
            (r"^blocks\.(\d+)\.norm2\.", rf"{prefix}encoder.layer.\1.layernorm_after."),
            (r"^blocks\.(\d+)\.attn\.proj\.", rf"{prefix}encoder.layer.\1.attention.output.dense."),
            (r"^blocks\.(\d+)\.mlp\.fc1\.", rf"{prefix}encoder.layer.\1.intermediate.dense."),
            (r"^blocks\.(\d+)\.mlp\.fc2\.", rf"{prefix}encoder.layer.\1.output.dense."),
            (r"^norm\.", f"{prefix}layernorm."),
            (r"^head\.", "classifier."),
        ):
            name = re.sub(old, new, name)
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("form", ["timm.safetensors", "timm.pth", "wrapped.pth", "hf.safetensors", "hf_deit.pth"])
def test_plain_state_dicts_of_both_projects_load_as_they_are(form: str, dense: Recipe, tmp_path: Path) -> None:
    tensors, path = weights(dense), tmp_path / form
    stored = {"hf.safetensors": hugging_face(tensors), "hf_deit.pth": hugging_face(tensors, "deit.")}.get(form, tensors)
    if path.suffix == ".safetensors":
        save_file(stored, path)
    else:
        torch.save({"model": stored} if form == "wrapped.pth" else stored, path)
    model, unused = build_model(dense, read_checkpoint(path), str(path))
    assert unused == ()
    for name, tensor in tensors_of(model).items():
        torch.testing.assert_close(tensor, tensors[name], atol=0, rtol=0)


def test_an_athe_checkpoint_comes_back_in_fp16_with_its_head_rank(adaptive: Recipe, tmp_path: Path) -> None:
    model = AtheModel(adaptive)
    model.initialise(1)
    model.head_rank = ((2, 0, 1), (0, 1, 2), (1, 2, 0))
    sha256 = save_checkpoint(tmp_path / "a.safetensors", model, {"by": "test"})
    again, _ = build_model(adaptive, read_checkpoint(tmp_path / "a.safetensors", sha256), "a")
    assert again.head_rank == model.head_rank
    for name, tensor in tensors_of(model).items():
        kept = tensor.half().float() if tensor.is_floating_point() else tensor
        torch.testing.assert_close(tensors_of(again)[name], kept, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["half", "v1.2"])
def test_a_branch_may_have_any_name_that_a_recipe_allows(name: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    branches = [TINY["branches"][0] | {"name": name}, TINY["branches"][1]]
    model = AtheModel(load_recipe(tiny(branches=branches)).recipe)
    model.initialise(1)
    save_checkpoint(tmp_path / "a.safetensors", model, {})
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert f"scorers.{name}.1.weight" in read.tensors
    again, unused = build_model(model.recipe, read, "a")
    assert unused == () and again.stages(model.recipe.branches[0])[0].scorer is not None


def test_unused_scorers_and_router_are_named_not_refused(dense: Recipe, adaptive: Recipe, tmp_path: Path) -> None:
    save_file(weights(adaptive), tmp_path / "a.safetensors")
    _, unused = build_model(dense, read_checkpoint(tmp_path / "a.safetensors"), "a")
    assert "scorers.simple.1.weight" in unused and any(n.startswith("router.") for n in unused)


def refused(recipe: Recipe, tensors: dict[str, Tensor], path: Path) -> str:
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        build_model(recipe, read_checkpoint(path), str(path))
    assert caught.value.remedy
    return caught.value.what


def test_missing_extra_and_misshapen_tensors_are_all_listed(dense: Recipe, tmp_path: Path) -> None:
    tensors = weights(dense)
    del tensors["norm.weight"]
    tensors["stowaway"] = torch.zeros(2)
    tensors["head.weight"] = torch.zeros(1000, 24)
    said = refused(dense, tensors, tmp_path / "bad.safetensors")
    assert "missing: norm.weight" in said
    assert "extra: stowaway" in said
    assert "misshapen: head.weight is 1000x24, the recipe needs 100x24" in said


def test_a_dense_checkpoint_without_scorers_is_refused_for_a_pruning_recipe(
    dense: Recipe, adaptive: Recipe, tmp_path: Path
) -> None:
    assert "missing: scorers.simple.1.weight" in refused(adaptive, weights(dense), tmp_path / "dense.safetensors")


def test_nan_weights_are_named(dense: Recipe, tmp_path: Path) -> None:
    tensors = weights(dense)
    tensors["head.bias"][3] = float("nan")
    assert "NaN or infinite values in head.bias" in refused(dense, tensors, tmp_path / "nan.safetensors")


def test_a_distilled_deit_is_refused_with_the_reason(dense: Recipe, tmp_path: Path) -> None:
    tensors = weights(dense) | {"dist_token": torch.zeros(1, 1, 24)}
    assert "second class token" in refused(dense, tensors, tmp_path / "distilled.safetensors")


def test_a_head_rank_that_is_no_order_is_refused(adaptive: Recipe, tmp_path: Path) -> None:
    tensors = weights(adaptive) | {"head_rank": torch.tensor([[0, 0, 1]] * 3)}
    assert "head_rank is not an order of 3 heads" in refused(adaptive, tensors, tmp_path / "rank.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_one_clear_error(suffix: str, dense: Recipe, tmp_path: Path) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(weights(dense), whole) if suffix == ".safetensors" else torch.save(weights(dense), whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        read_checkpoint(path)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1 / 0",))


def test_a_pickle_with_code_in_it_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"model": _Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError):  # ZeroDivisionError would mean that it ran
        read_checkpoint(tmp_path / "bomb.pth")


def test_another_sha256_than_the_recipes_is_refused(dense: Recipe, tmp_path: Path) -> None:
    save_file(weights(dense), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="the recipe says 0000"):
        read_checkpoint(tmp_path / "a.safetensors", "0" * 64)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "none.safetensors")
    assert "athe-export train" in str(caught.value.remedy)


def test_deit_tiny_patch16_224_has_the_published_parameter_count(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    model = {"arch": "deit", "image_size": 224, "patch": 16, "dim": 192, "depth": 12, "heads": 3, "classes": 1000}
    recipe = load_recipe(tiny(**DENSE, model=model)).recipe
    assert sum(t.numel() for t in weights(recipe).values()) == 5_717_416  # Touvron et al., 2021, table 1: 5M
    assert TINY["model"]["dim"] == 24
