"""Branch modules: fixed shape, cut for good, equal to the shared-weight path they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from athe_export.branches import BranchModule, build_branch, build_router, graph_sources
from athe_export.model.athe import AtheModel
from athe_export.recipe import load_recipe


@pytest.fixture
def model(tiny: Callable[..., Path]) -> AtheModel:
    made = AtheModel(load_recipe(tiny()).recipe)
    made.initialise(4)
    made.head_rank = ((1, 0, 2),) * 3
    return made.eval()


def test_a_branch_gives_the_logits_of_the_shared_weights(model: AtheModel) -> None:
    image = torch.randn(5, 3, 32, 32)
    for branch in model.recipe.branches:
        module = build_branch(model, branch).module
        torch.testing.assert_close(module(image), model.logits(image, branch), atol=1e-5, rtol=1e-5)


def test_dropped_heads_are_gone_from_the_weights(model: AtheModel) -> None:
    simple = build_branch(model, model.recipe.branches[0]).module
    assert simple.blocks[0].attn.qkv.weight.shape == (3 * 8, 24)
    assert simple.blocks[0].attn.proj.weight.shape == (24, 8)
    assert sum(p.numel() for p in simple.parameters()) < sum(p.numel() for p in model.backbone.parameters())


def test_cutting_a_branch_leaves_the_model_as_it_was(model: AtheModel) -> None:
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for source in graph_sources(model):
        source.module(torch.randn(1, 3, source.image_size, source.image_size))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_branch_that_drops_heads_needs_a_rank(model: AtheModel) -> None:
    model.head_rank = None
    with pytest.raises(ValueError, match="no head rank"):
        build_branch(model, model.recipe.branches[0])


def test_the_folded_router_gives_the_trained_router(model: AtheModel) -> None:
    assert model.router is not None
    model.router.train()
    for _ in range(3):  # move the running statistics away from their defaults
        model.router(torch.randn(8, 3, 32, 32) + 1)
    model.router.eval()
    image = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(build_router(model).module(image), model.router(image), atol=1e-5, rtol=1e-4)


def test_three_branches_and_one_branch_are_as_good_as_two(tiny: Callable[..., Path]) -> None:
    names = ["easy", "middle", "hard"]
    branches = [
        {"name": n, "heads": 3, "prune": [{"after_blocks": 1, "keep": k}]} for n, k in zip(names, (0.3, 0.5, 1), strict=True)
    ]
    three = AtheModel(load_recipe(tiny(branches=branches)).recipe)
    assert [s.role for s in graph_sources(three.eval())] == ["router", *names]
    one = AtheModel(load_recipe(tiny(branches=branches[:1], router=None)).recipe)
    sources = graph_sources(one.eval())
    assert [s.role for s in sources] == ["easy"] and isinstance(sources[0].module, BranchModule)
