"""The deployed form: pixels in, fewer and cheaper ops, and to the last test the plain model's function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from athe_export.branches import BranchGraphSource, build_branch
from athe_export.deployed import CENTRED, PLAIN, UNFOLDED, HeadByHead, RmsNorm, deployed
from athe_export.errors import ExportError
from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Pixels, Preprocessing, Tensor
from athe_export.recipe import load_recipe
from athe_export.targets.equality import require_alike
from tests.conftest import TINY

NORMS = [PLAIN, CENTRED, UNFOLDED]
# none, one and two prune stages; fewer heads, and all of them
BRANCHES = [
    {"name": "dense", "heads": 3},
    {"name": "one", "prune": [{"after_blocks": 1, "keep": 0.4}], "heads": 1},
    {"name": "two", "prune": [{"after_blocks": 1, "keep": 0.8}, {"after_blocks": 2, "keep": 0.5}], "heads": 2},
    {"name": "by_attention", "prune": [{"after_blocks": 2, "keep": 0.5}], "heads": 3, "scorer": "cls_attention"},
    {"name": "dynamicvit", "prune": [{"after_blocks": 1, "keep": 0.7}], "heads": 3, "scorer": "dynamicvit"},
    {"name": "evit", "prune": [{"after_blocks": 1, "keep": 0.7}], "heads": 3, "scorer": "evit"},
    {"name": "ats", "prune": [{"after_blocks": 1, "keep": 0.7}], "heads": 2, "scorer": "ats"},
]


@pytest.fixture
def preprocessing() -> Preprocessing:
    return Preprocessing(32, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture
def model(tiny: Callable[..., Path]) -> AtheModel:
    """Norms and biases are not those of a fresh model, so that leaving one out shows."""
    made = AtheModel(load_recipe(tiny(router=TINY["router"] | {"threshold": {"max_drop_pp": 50}}, branches=BRANCHES)).recipe)
    made.initialise(4)
    made.head_rank = ((1, 0, 2), (2, 1, 0), (0, 2, 1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += (0.3 if parameter.ndim == 1 else 0.05) * torch.randn(parameter.shape, generator=generator)
    return made.eval()


def source_of(model: AtheModel, name: str) -> BranchGraphSource:
    return build_branch(model, next(b for b in model.recipe.branches if b.name == name))


def seen(preprocessing: Preprocessing, sources: list[Pixels]) -> tuple[list[Pixels], list[Tensor]]:
    return [s[None] for s in sources], [preprocessing.tensor(s, s.shape[0]) for s in sources]


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("name", [b["name"] for b in BRANCHES])
def test_a_deployed_branch_is_the_same_function_of_pixels(
    model: AtheModel, preprocessing: Preprocessing, noise: list[Pixels], name: str, norms: str
) -> None:
    source = source_of(model, name)
    made = deployed(source, preprocessing, norms)
    assert made.input_shape == (1, 32, 32, 3) and made.layers == source.layers
    require_alike(made, source, *seen(preprocessing, noise))


def test_a_deployed_router_normalises_before_it_pads(
    tiny_sources: dict[str, BranchGraphSource], preprocessing: Preprocessing, noise: list[Pixels]
) -> None:
    require_alike(
        deployed(tiny_sources["router"], preprocessing, PLAIN), tiny_sources["router"], *seen(preprocessing, noise)
    )


@pytest.mark.parametrize("norms", NORMS)
def test_deploying_leaves_the_plain_model_as_it_is(model: AtheModel, preprocessing: Preprocessing, norms: str) -> None:
    source = source_of(model, "two")
    before = {name: tensor.clone() for name, tensor in source.module.state_dict().items()}
    deployed(source, preprocessing, norms)
    after = source.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_norms_lose_their_mean_behind_the_last_choice_of_tokens_alone(
    model: AtheModel, preprocessing: Preprocessing
) -> None:
    module = deployed(source_of(model, "two"), preprocessing, CENTRED).module
    kept = [isinstance(block.norm1, nn.Sequential) for block in module.blocks]  # type: ignore[union-attr]
    assert kept == [True, True, False] and isinstance(module.norm, RmsNorm)
    whole = deployed(source_of(model, "dense"), preprocessing, CENTRED).module
    assert all(isinstance(block.norm1, RmsNorm) for block in whole.blocks)  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "inside", "asked"), [("dense", False, 1), ("two", False, 1), ("by_attention", True, 17)])
def test_the_last_block_goes_on_with_the_class_token_alone_unless_it_chooses_tokens(
    model: AtheModel, preprocessing: Preprocessing, noise: list[Pixels], name: str, inside: bool, asked: int
) -> None:
    source = source_of(model, name)
    if inside:  # its attention then says which tokens its MLP sees
        source.module.cuts = tuple(dataclasses.replace(c, inside=True) for c in source.module.cuts)  # type: ignore
    made, rows = deployed(source, preprocessing, PLAIN), []
    made.module.blocks[-1].attn.proj.register_forward_hook(lambda _, given, out: rows.append(len(out)))  # type: ignore
    require_alike(made, source, *seen(preprocessing, noise))
    assert set(rows) == {asked}


def test_attention_probabilities_are_those_of_the_plain_heads(model: AtheModel) -> None:
    attention = source_of(model, "dense").module.blocks[0].attn  # type: ignore[union-attr,index]
    x = torch.randn(17, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (plain, attended), (by_head, by_head_attended) = attention(x, 1), HeadByHead(attention)(x, 1)
    for expected, found in zip((plain, *attended), (by_head, *by_head_attended), strict=True):
        assert torch.allclose(expected, found, atol=1e-6)


def test_a_deployed_form_that_is_another_function_is_an_error(
    model: AtheModel, preprocessing: Preprocessing, noise: list[Pixels]
) -> None:
    source = source_of(model, "one")
    other = deployed(source, preprocessing._replace(mean=(0.5, 0.4, 0.31)), PLAIN)
    with pytest.raises(ExportError, match="differs from torch") as caught:
        require_alike(other, source, *seen(preprocessing, noise))
    assert caught.value.where == "the deployed form of one"


@pytest.fixture
def noise() -> list[Pixels]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(4)]
