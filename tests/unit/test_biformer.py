"""Bi-level routing attention against its equations, the whole model's invariants, and what of a recipe does not fit it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from athe_export.branches import build_branch
from athe_export.errors import RecipeError
from athe_export.model.athe import AtheModel
from athe_export.model.biformer import BiFormer, BiLevelRoutingAttention, Regions
from athe_export.model.checkpoint import build_model, random_checkpoint, tensors_of
from athe_export.recipe import BiFormerSpec, ModelSpec, load_recipe
from athe_export.runtime.litert_session import LitertSession
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.targets.litert.export import export as litert_export
from athe_export.targets.litert.quantize import quantize as litert_quantize
from athe_export.targets.onnx.export import export as onnx_export
from athe_export.targets.onnx.quantize import quantize as onnx_quantize
from athe_export.targets.onnx.simplify import simplify

MODEL: dict[str, Any] = {
    "arch": "biformer", "image_size": 32, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "classes": 100, "mlp_ratio": 3.0,
    "biformer": {"depths": [1, 1], "top_k": [1, 4], "regions": 2},
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "model": MODEL, "router": None, "branches": [{"name": "plain", "heads": 2}], "checkpoint": {"random_seed": 3},
}  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def biformer() -> BiFormer:
    """Three stages that route to one region, to two and to all; its batch statistics are not their defaults."""
    model = BiFormer(ModelSpec("biformer", 64, 4, 16, 4, 2, 10, 3.0, BiFormerSpec((1, 2, 1), (1, 2, 4), 2)))
    model.initialise(0)
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(drawn(8, 3, 64, 64, seed=seed) + 1)
    return model.eval()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_region_attends_to_the_regions_with_the_largest_affinity_and_to_no_other(top_k: int) -> None:
    """Written from equations 3 to 7, region by region and head by head; with all of them it is plain attention."""
    torch.manual_seed(1)
    regions, side, dim, heads = Regions(2), 4, 8, 2
    attention = BiLevelRoutingAttention(dim, heads, regions, top_k).eval()
    with torch.no_grad():
        attention.qkv.weight.mul_(3)
        x = drawn(2 * side * side, dim)
        q, k, v = attention.qkv(x).reshape(2, 4, 4, 3, dim).unbind(3)  # image, region, token of it
        expected = torch.zeros(2, 4, 4, dim)
        for image in range(2):
            affinity = q[image].mean(1) @ k[image].mean(1).T
            for region in range(4):
                best = affinity[region].argsort(descending=True)[:top_k]
                keys, values = k[image, best].reshape(-1, dim), v[image, best].reshape(-1, dim)
                for head in range(heads):
                    own = slice(head * dim // heads, (head + 1) * dim // heads)
                    weights = (q[image, region][:, own] @ keys[:, own].T / (dim // heads) ** 0.5).softmax(-1)
                    expected[image, region][:, own] = weights @ values[:, own]
        context = attention.context(regions.map(v.reshape(-1, dim), side).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        expected = attention.proj(expected.reshape(-1, dim) + regions.tokens(context))
        torch.testing.assert_close(attention(x, 2, side), expected, atol=1e-5, rtol=1e-5)


def test_regions_are_squares_of_the_map() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    tokens = Regions(2).tokens(x)
    assert tokens[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert torch.equal(Regions(2).map(tokens, 4), x)


def test_a_batch_gives_what_its_images_give_alone(biformer: BiFormer) -> None:
    images = drawn(4, 3, 64, 64, seed=9)
    alone = torch.cat([biformer(image[None]) for image in images])
    torch.testing.assert_close(biformer(images), alone, atol=1e-5, rtol=1e-5)


def test_folding_batch_normalisation_keeps_the_function_and_the_model(biformer: BiFormer) -> None:
    images, before = drawn(4, 3, 64, 64, seed=9), {n: t.clone() for n, t in biformer.state_dict().items()}
    deployed = biformer.deployed()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in deployed.modules())
    torch.testing.assert_close(deployed(images), biformer(images), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[n], t) for n, t in biformer.state_dict().items())


def test_a_checkpoint_of_it_comes_back(tiny: Callable[..., Path]) -> None:
    recipe = load_recipe(tiny(**RECIPE)).recipe
    checkpoint = random_checkpoint(recipe, 5)
    model, unused = build_model(recipe, checkpoint, "here")
    assert unused == () and all(torch.equal(t, checkpoint.tensors[n]) for n, t in tensors_of(model).items())


def test_it_runs_in_both_runtimes_in_both_precisions_and_xnnpack_leaves_out_the_routing_alone(
    tiny: Callable[..., Path], real_images: tuple[Any, ...]
) -> None:
    """The targets' own checks hold fp32 graphs against torch, to be static, and int8 ones to lose no delegation."""
    recipe = load_recipe(tiny(**RECIPE)).recipe
    (shipped,) = Path(__file__).parents[2].glob("recipes/baselines/biformer*.yaml")
    targets = load_recipe(shipped).recipe.targets
    assert targets.onnx is not None and targets.litert is not None
    model = AtheModel(recipe)
    model.initialise(3)
    source, images = build_branch(model.eval(), recipe.branches[0]), real_images[:4]
    onnx = simplify(onnx_export(source, 20, images))
    litert = litert_export(source, images)
    assert onnx.mmacs == pytest.approx(litert.mmacs, rel=1e-3)
    int8 = {
        "onnx": onnx_quantize(onnx, targets.onnx.quantize, images),
        "litert": litert_quantize(litert, targets.litert.quantize, images),
    }
    outside = {op.split(" ")[0] for op in LitertSession(litert.content).delegation().outside}
    assert outside == {"TOPK_V2", "RESHAPE", "EMBEDDING_LOOKUP"}
    with torch.no_grad():
        expected = source.module(torch.from_numpy(images[0])).numpy()
    for session in (OnnxSession(int8["onnx"].content), LitertSession(int8["litert"].content)):
        assert np.abs(session.run(images[0]) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("model", "others", "said"),
    [
        ({"biformer": None}, {}, "is needed with arch: biformer"),
        ({"arch": "deit"}, {}, "only there"),
        ({"patch": 8}, {}, "8 must be 4"),
        ({"depth": 3}, {}, "3 is not the sum of biformer.depths, 2"),
        ({"biformer": {"depths": [1, 1], "top_k": [1], "regions": 2}}, {}, "an entry for each of the 2 stages"),
        ({"biformer": {"depths": [1, 1], "top_k": [1, 5], "regions": 2}}, {}, "5 is more than the 4 regions"),
        ({"image_size": 40}, {}, "40 is no multiple of 16"),
        ({}, {"branches": [{"name": "plain", "heads": 1}]}, "one branch that drops nothing"),
        ({}, {"equalise": {}}, "is for arch: deit"),
        ({}, {"train": {"dense": [], "adaptive": [{"epochs": 1}]}}, "no branches to fit jointly"),
        ({}, {"train": {"dense": [{"epochs": 1, "patch_keep": 0.5}], "adaptive": []}}, "need every patch"),
        ({}, {"train": {"dense": [{"epochs": 1, "image_size": 24}], "adaptive": []}}, "24 is no multiple of 16"),
    ],
)
def test_what_does_not_fit_a_biformer_is_refused_where_it_stands(
    tiny: Callable[..., Path], model: dict[str, Any], others: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(tiny(**RECIPE | {"model": MODEL | model} | others))
