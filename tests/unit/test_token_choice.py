"""Which tokens a graph keeps: read off real graphs of both targets, and tried out in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from athe_export.branches import BranchGraphSource, BranchModule, build_branch
from athe_export.model.athe import AtheModel
from athe_export.model.tokens import Trace
from athe_export.preprocessing import Pixels, Tensor
from athe_export.recipe import load_recipe
from athe_export.runtime.litert_session import LitertSession
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.targets.litert.tokens import token_graphs as litert_tokens
from athe_export.targets.onnx.export import export
from athe_export.targets.onnx.tokens import token_graphs as onnx_tokens
from athe_export.token_choice import _remaining
from tests.tools import graph_content

PREFIXES = {"onnx": "onnx/{}.{}.onnx", "litert": "litert/{}.{}.tflite"}


def torch_keeps(source: BranchGraphSource, image: Tensor) -> set[int]:
    assert isinstance(source.module, BranchModule)
    trace = Trace()
    with torch.no_grad():
        source.module.traced(torch.from_numpy(image), trace)
    assert trace.kept is not None
    return set(trace.kept[0].tolist())


@pytest.mark.parametrize("target", ["onnx", "litert"])
@pytest.mark.parametrize("role", ["simple", "complex"])
def test_an_exported_graph_keeps_the_tokens_that_torch_keeps(
    built_both,
    tiny_sources: dict[str, BranchGraphSource],
    real_images: tuple[Tensor, ...],
    real_pixels: tuple[Pixels, ...],
    target: str,
    role: str,
) -> None:
    content = graph_content(built_both, PREFIXES[target].format(role, "fp32"))
    (graph,) = (onnx_tokens if target == "onnx" else litert_tokens)(content)
    session = (OnnxSession if target == "onnx" else LitertSession)(graph)
    for image, pixels in zip(real_images[:6], real_pixels, strict=False):
        chosen = session.run(pixels).reshape(-1)
        assert set(chosen.tolist()) == torch_keeps(tiny_sources[role], image)


@pytest.mark.parametrize("target", ["onnx", "litert"])
def test_an_int8_graph_can_be_asked_too(built_both, real_pixels: tuple[Pixels, ...], target: str) -> None:
    content = graph_content(built_both, PREFIXES[target].format("simple", "int8"))
    (graph,) = (onnx_tokens if target == "onnx" else litert_tokens)(content)
    chosen = (OnnxSession if target == "onnx" else LitertSession)(graph).run(real_pixels[0]).reshape(-1)
    assert len(set(chosen.tolist())) == len(chosen) == 6  # of 16 patches 40%


def two_stages(tiny) -> BranchGraphSource:
    """A branch that prunes twice, of random weights."""
    branch = {"name": "only", "heads": 3, "prune": [{"after_blocks": 1, "keep": 0.75}, {"after_blocks": 2, "keep": 0.5}]}
    recipe = load_recipe(tiny(branches=[branch], router=None, checkpoint={"random_seed": 7})).recipe
    model = AtheModel(recipe)
    model.initialise(7)
    return build_branch(model.eval(), recipe.branches[0])


def test_each_of_several_stages_counts_among_the_tokens_that_the_one_before_has_left(
    tiny, real_images: tuple[Tensor, ...]
) -> None:
    source = two_stages(tiny)
    graphs = onnx_tokens(export(source, 20, real_images[:1]).content)
    stages = tuple(OnnxSession(g).run(real_images[0]).reshape(-1).astype(np.int64) for g in graphs)
    assert [len(s) for s in stages] == [12, 6]
    assert set(_remaining(stages, fused=False).tolist()) == torch_keeps(source, real_images[0])


def test_torch_that_is_told_its_own_tokens_answers_as_it_does_and_otherwise_keeps_what_it_is_told(
    tiny, real_images: tuple[Tensor, ...]
) -> None:
    source = two_stages(tiny)
    module, image = source.module, torch.from_numpy(np.concatenate(real_images[:4]))
    assert isinstance(module, BranchModule)
    graphs = [OnnxSession(g) for g in onnx_tokens(export(source, 20, real_images[:1]).content)]
    own = [
        torch.from_numpy(np.concatenate([g.run(x).reshape(1, -1) for x in real_images[:4]]).astype(np.int64)) for g in graphs
    ]
    with torch.no_grad():
        assert torch.allclose(module.with_tokens(image, own), module(image), atol=1e-5)
        other = [own[0], torch.arange(6, 12).expand(4, 6)]
        assert not torch.allclose(module.with_tokens(image, other), module(image), atol=1e-3)


def test_a_graph_that_prunes_nothing_chooses_nothing(tiny, real_images: tuple[Tensor, ...]) -> None:
    recipe = load_recipe(tiny(branches=[{"name": "only", "heads": 3}], router=None, checkpoint={"random_seed": 7})).recipe
    source = build_branch(AtheModel(recipe).eval(), recipe.branches[0])
    assert onnx_tokens(export(source, 20, real_images[:1]).content) == ()
