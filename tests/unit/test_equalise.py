"""Equalisation: the same function from weights whose activations lie alike in every channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from athe_export.branches import BranchGraphSource, build_branch
from athe_export.errors import ExportError
from athe_export.model.athe import AtheModel
from athe_export.model.equalise import (
    ChannelRange,
    UnfoldedLayerNorm,
    equalised,
    measure_ranges,
    norm_pairs,
    require_same,
    unfolded,
)
from athe_export.recipe import EqualiseSpec, load_recipe
from athe_export.targets.litert.export import export as litert_export
from athe_export.targets.litert.graph import unpack
from tests.conftest import TINY

SPECS = [EqualiseSpec(alpha, shift) for alpha in (0.0, 0.5, 1.0) for shift in (False, True)]
IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["linear", "cls_attention"])
def model(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> AtheModel:
    """Two branches, of one head and of three; some channels of every LayerNorm are 20 times the others."""
    branches = [
        {"name": "simple", "prune": [{"after_blocks": 1, "keep": 0.4}], "heads": 1, "scorer": request.param},
        {"name": "complex", "prune": [{"after_blocks": 2, "keep": 0.75}], "heads": 3, "scorer": request.param},
    ]
    made = AtheModel(load_recipe(tiny(branches=branches)).recipe)
    made.initialise(4)
    made.head_rank = ((1, 0, 2),) * 3
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.backbone.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter[::7] *= 20
    return made.eval()


def batches(model: AtheModel) -> Mapping[str, Iterator[Tensor]]:
    return {branch.name: iter(IMAGES.split(5)) for branch in model.recipe.branches}


def spread(found: ChannelRange) -> float:
    """The widest channel over the narrowest."""
    width = torch.maximum(found.low.abs(), found.high.abs())
    return float(width.max() / width.min())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_branch_gives_the_same_logits_as_before(model: AtheModel, spec: EqualiseSpec) -> None:
    made = equalised(model, measure_ranges(model, batches(model)), spec)
    assert require_same(model, made, batches(model)) <= 1e-4
    for branch in model.recipe.branches:
        torch.testing.assert_close(made.logits(IMAGES, branch), model.logits(IMAGES, branch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [False, True])
def test_with_alpha_1_every_channel_has_the_same_range(model: AtheModel, shift: bool) -> None:
    before = measure_ranges(model, batches(model))
    after = measure_ranges(equalised(model, before, EqualiseSpec(1.0, shift)), batches(model))
    assert len(after) == 2 * model.recipe.model.depth + 1
    for name, found in after.items():
        assert spread(before[name]) > 5
        assert spread(found) == pytest.approx(1, abs=1e-3)
        if shift:
            torch.testing.assert_close(found.low, -found.high, atol=1e-3, rtol=1e-3)


def test_with_alpha_between_activations_and_weights_share_the_spread(model: AtheModel) -> None:
    before = measure_ranges(model, batches(model))
    made = equalised(model, before, EqualiseSpec(0.5))
    after = measure_ranges(made, batches(made))
    for (name, _, linear), (_, _, old) in zip(norm_pairs(made.backbone), norm_pairs(model.backbone), strict=True):
        activations = torch.maximum(after[name].low.abs(), after[name].high.abs())
        torch.testing.assert_close(activations, linear.weight.abs().amax(0), atol=1e-3, rtol=1e-3)  # of SmoothQuant
        assert spread(after[name]) < spread(before[name])
        assert not torch.equal(linear.weight, old.weight)


def test_a_channel_that_is_always_zero_stays_finite_and_changes_nothing(model: AtheModel) -> None:
    with torch.no_grad():
        model.backbone.blocks[1].norm2.weight[3] = 0  # type: ignore[union-attr,operator,index]
        model.backbone.blocks[1].norm2.bias[3] = 0  # type: ignore[union-attr,operator,index]
    made = equalised(model, measure_ranges(model, batches(model)), EqualiseSpec(1.0))
    assert all(torch.isfinite(p).all() for p in made.parameters())
    require_same(model, made, batches(model))


def test_the_model_that_is_equalised_stays_as_it_was(model: AtheModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = equalised(model, measure_ranges(model, batches(model)), EqualiseSpec(0.5, True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert made.head_rank == model.head_rank
    others = [n for n in before if not any(part in n for part in (".norm", "qkv", "fc1", "head."))]
    assert all(torch.equal(before[n], made.state_dict()[n]) for n in others) and len(others) > 10


def test_a_changed_function_is_refused_and_the_branch_named(model: AtheModel) -> None:
    made = equalised(model, measure_ranges(model, batches(model)), EqualiseSpec(0.5))
    with torch.no_grad():
        made.backbone.blocks[0].mlp.fc1.bias[0] += 0.1  # type: ignore[union-attr,operator,index]
    with pytest.raises(ExportError, match="changes a logit") as caught:
        require_same(model, made, batches(model))
    assert caught.value.where == "equalise, branch simple"


def test_norms_written_out_are_the_same_function(model: AtheModel) -> None:
    for branch in model.recipe.branches:
        module = build_branch(model, branch).module
        made = unfolded(module)
        assert not any(isinstance(m, torch.nn.LayerNorm) for m in made.modules())
        assert sum(isinstance(m, UnfoldedLayerNorm) for m in made.modules()) == 2 * model.recipe.model.depth + 1
        assert sum(isinstance(m, torch.nn.LayerNorm) for m in module.modules()) == 2 * model.recipe.model.depth + 1
        torch.testing.assert_close(made(IMAGES), module(IMAGES), atol=1e-4, rtol=1e-4)


def test_the_converter_to_litert_undoes_equalisation_unless_the_norms_are_written_out(tiny: Callable[..., Path]) -> None:
    small = TINY["model"] | {"depth": 1, "dim": 12, "classes": 4}
    model = AtheModel(load_recipe(tiny(model=small, branches=[{"name": "only", "heads": 3}], router=None)).recipe)
    model.initialise(4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # where a layer has no bias the converter leaves some norms alone, and no trained model is so
        for parameter in (p for p in model.backbone.parameters() if p.ndim == 1):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.backbone.blocks[0].norm1.weight[::5] *= 20  # type: ignore[union-attr,operator,index]
    ranges = measure_ranges(model.eval(), {"only": iter([IMAGES])})
    made = build_branch(equalised(model, ranges, EqualiseSpec(0.5)), model.recipe.branches[0])
    images = [image[None].numpy() for image in IMAGES[:2]]

    def is_kept(source: BranchGraphSource) -> bool:
        """Whether the graph's qkv has torch's weights."""
        graph = unpack(litert_export(source, images).content)
        tensors = graph.subgraphs[0].tensors
        op = next(o for o in graph.subgraphs[0].operators if tensors[o.outputs[0]].name == b"blocks.0.attn.qkv")
        stored = np.frombuffer(bytes(graph.buffers[tensors[op.inputs[1]].buffer].data), np.float32)
        return np.allclose(stored, source.module.blocks[0].attn.qkv.weight.numpy(force=True).ravel(), rtol=1e-4)  # type: ignore[union-attr,index]

    assert not is_kept(made)
    assert is_kept(dataclasses.replace(made, module=unfolded(made.module)))


def test_without_images_there_is_nothing_to_measure(model: AtheModel) -> None:
    with pytest.raises(ValueError, match="needs images"):
        measure_ranges(model, {branch.name: iter(()) for branch in model.recipe.branches})
