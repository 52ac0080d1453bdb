"""Export to LiteRT on tiny real graphs: each promise of the step, and each promise broken."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor as TorchTensor
from torch import nn

from athe_export.branches import BranchGraphSource
from athe_export.bundle.reader import open_bundle
from athe_export.deployed import CENTRED, deployed
from athe_export.errors import ExportError
from athe_export.preprocessing import Pixels, Preprocessing, Tensor
from athe_export.runtime.litert_session import LitertSession
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.runtime.predictor import open_session
from athe_export.targets.equality import MAX_ERROR, require_equal
from athe_export.targets.litert.export import export
from athe_export.targets.litert.graph import LitertGraph, pack, require_static, unpack
from tests.tools import graph_content

Graphs = dict[str, LitertGraph]
Sources = dict[str, BranchGraphSource]
ROLES = ("router", "simple", "complex")
SELECTION = ["TOPK_V2", "RESHAPE", "EMBEDDING_LOOKUP"]


@pytest.fixture(scope="module")
def deployed_sources(tiny_sources: Sources, tiny_preprocessing: Preprocessing) -> Sources:
    """What the tiny bundle's TFLite graphs were made from."""
    return {role: deployed(source, tiny_preprocessing, CENTRED) for role, source in tiny_sources.items()}


def source_of(module: nn.Module) -> BranchGraphSource:
    """A module of a few layers as something to export, which takes a second."""
    return BranchGraphSource("small", module.eval(), 32, "logits")


class Small(nn.Module):
    """A linear layer over the rows of the image's first channel; `before` is what its input goes through."""

    def __init__(self, before: Callable[[TorchTensor], TorchTensor] = torch.relu) -> None:
        super().__init__()
        self.fc, self.before = nn.Linear(32, 10), before

    def forward(self, image: TorchTensor) -> TorchTensor:
        y: TorchTensor = self.fc(self.before(image[0, 0]).mean(0, keepdim=True))
        return y


def stored(graph: LitertGraph, model: Any, layer: str, operand: int = 1) -> np.ndarray:
    """Writable within the unpacked model: what it stores as a layer's weight (1) or bias (2), float32."""
    index = next(i for i, op in enumerate(graph.ops) if op.name == layer)
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[index].inputs[operand]]
    buffer = model.buffers[tensor.buffer]
    buffer.data = np.array(buffer.data, np.uint8)
    values: np.ndarray = buffer.data.view(np.float32)
    return values


# what every graph promises


@pytest.mark.parametrize(("role", "output"), [("router", "difficulty"), ("simple", "logits"), ("complex", "logits")])
def test_a_graph_has_one_image_in_and_one_named_output_of_fixed_shape(litert_graphs: Graphs, role: str, output: str) -> None:
    graph = litert_graphs[role]
    require_static(graph, "test")
    (given,), (made,) = graph.inputs, graph.outputs
    assert (given.name, given.shape, given.dtype) == ("image", (1, 32, 32, 3), "int8")
    assert (made.name, made.shape, made.dtype) == (output, (1,) if role == "router" else (1, 100), "float32")
    assert len(unpack(graph.content).subgraphs) == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_graph_is_torch_on_real_images(
    litert_graphs: Graphs, deployed_sources: Sources, real_pixels: tuple[Pixels, ...], role: str
) -> None:
    require_equal(LitertSession(litert_graphs[role].content), deployed_sources[role], real_pixels, "test")


@pytest.mark.parametrize("role", ROLES)
def test_layers_carry_their_torch_names_in_the_order_they_run_in(
    litert_graphs: Graphs, tiny_sources: Sources, role: str
) -> None:
    layers = [op.name for op in litert_graphs[role].ops if op.has_weight]
    assert layers == list(tiny_sources[role].layers)
    assert all(name.startswith("router.") for name in layers) == (role == "router")
    assert ("scorers.1" in layers, "scorers.2" in layers) == (role == "simple", role == "complex")


@pytest.mark.parametrize("role", ROLES)
def test_a_layer_of_a_name_stores_the_weights_of_the_torch_module_of_that_name(
    litert_graphs: Graphs, deployed_sources: Sources, role: str
) -> None:
    """Names are given by order; layers of one size could be mixed up without anything else telling."""
    source, graph, model = deployed_sources[role], litert_graphs[role], unpack(litert_graphs[role].content)
    modules = {source.layer_name(n): m for n, m in source.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for layer, module in modules.items():
        weight = module.weight.detach()
        if isinstance(module, nn.Conv2d):  # as [out, height, width, in]; depthwise as [1, height, width, out]
            weight = weight.permute(1, 2, 3, 0) if module.groups > 1 else weight.permute(0, 2, 3, 1)
        assert np.allclose(stored(graph, model, layer), weight.flatten().numpy(), atol=1e-6), layer


@pytest.mark.parametrize("target", ["litert", "onnx"])
def test_both_targets_count_the_same_macs_whatever_the_precision(built_both: Path, target: str) -> None:
    """test_onnx_target counts them by hand."""
    graphs = open_bundle(built_both).manifest.graphs
    for role in ROLES:
        (one,) = {g.mmacs for g in graphs if (g.role, g.target) == (role, target)}
        (other,) = {g.mmacs for g in graphs if (g.role, g.target) != (role, target) and g.role == role}
        assert one == pytest.approx(other, abs=1e-3) and one > 0


@pytest.mark.parametrize("role", ["simple", "complex"])
def test_a_pruned_branch_leaves_its_selection_outside_xnnpack_and_nothing_else(litert_graphs: Graphs, role: str) -> None:
    found = LitertSession(litert_graphs[role].content).delegation()
    assert [op.split()[0] for op in found.outside] == SELECTION
    assert found.partitions == 2


def test_the_router_is_one_partition(litert_graphs: Graphs) -> None:
    found = LitertSession(litert_graphs["router"].content).delegation()
    assert (found.partitions, found.outside) == (1, ())


# the choice of tokens


def tied(bundle: Path, litert: LitertGraph) -> tuple[OnnxSession, LitertSession]:
    """Both targets' graphs of a branch, in which the scorer has only zeros, so that all tokens score alike."""
    scorer = next(op.name for op in litert.ops if op.name.startswith("scorers."))
    model = unpack(litert.content)
    for operand in (1, 2):
        stored(litert, model, scorer, operand)[:] = 0
    graph = onnx.load_from_string(graph_content(bundle, f"onnx/{litert.role}.fp32.onnx"))
    for constant in (i for i in graph.graph.initializer if i.name.startswith(scorer)):
        constant.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(constant.dims), np.float32), constant.name))
    return OnnxSession(graph.SerializeToString()), LitertSession(pack(model))


@pytest.mark.parametrize("role", ["simple", "complex"])
def test_both_targets_choose_the_same_tokens_where_all_score_alike(
    built_both: Path, litert_graphs: Graphs, real_pixels: tuple[Pixels, ...], role: str
) -> None:
    onnx_tied, litert_tied = tied(built_both, litert_graphs[role])
    scored = LitertSession(litert_graphs[role].content)
    for image in real_pixels:
        assert np.abs(onnx_tied.run(image) - litert_tied.run(image)).max() <= MAX_ERROR
    others = [np.abs(scored.run(image) - litert_tied.run(image)).max() for image in real_pixels]
    assert max(others) > 10 * MAX_ERROR, "the choice of tokens does not show in the logits, so nothing was compared"


@pytest.mark.parametrize("role", ROLES)
def test_both_targets_give_the_same_on_real_images(built_both: Path, real_pixels: tuple[Pixels, ...], role: str) -> None:
    bundle = open_bundle(built_both)
    one, other = (open_session(bundle, g) for g in bundle.manifest.graphs if (g.role, g.precision) == (role, "fp32"))
    for image in real_pixels:
        assert np.abs(one.run(image).ravel() - other.run(image).ravel()).max() <= MAX_ERROR


# the conversion itself


def test_converting_leaves_the_torch_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answered = module(image)
    export(source_of(module), [image[:1].numpy()])
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(m.training for m in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert torch.equal(module(image), answered)  # and it still takes other batch sizes


def test_converting_says_nothing_and_lets_others_speak_afterwards(
    real_images: tuple[Tensor, ...], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    export(source_of(Small()), real_images[:1])
    assert capfd.readouterr() == ("", "") and caplog.records == []
    logging.getLogger("someone").error("heard")
    os.write(2, b"heard")
    assert caplog.messages == ["heard"] and "heard" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Small(torch.lgamma), "litert-torch cannot convert it: .*lgamma"),
        (Small(lambda x: x if x.sum() > 0 else -x), "litert-torch cannot convert it: "),
        (Small(lambda x: x.sort(0).values), "more than one subgraph"),
        (Small(lambda x: x @ torch.ones(32, 32)), "the graph's 2 layers are not the 1 that torch runs"),
    ],
    ids=["an op without a lowering", "control flow", "an op that becomes a subgraph", "a weight without a layer"],
)
def test_what_cannot_be_exported_is_one_clear_error(real_images: tuple[Tensor, ...], module: nn.Module, said: str) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        export(source_of(module), real_images[:1])
    assert caught.value.exit_code == 8
    assert "small" in str(caught.value.where) and caught.value.remedy
    assert "\n" not in caught.value.what


def test_an_op_that_cannot_be_converted_names_the_recipe_key_to_leave_out(real_images: tuple[Tensor, ...]) -> None:
    with pytest.raises(ExportError) as caught:
        export(source_of(Small(torch.erfinv)), real_images[:1])
    assert "aten.erfinv" in caught.value.what and "targets.litert" in caught.value.remedy


def test_a_layer_that_runs_twice_is_refused_since_its_name_would_stand_for_two(real_images: tuple[Tensor, ...]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, image: TorchTensor) -> TorchTensor:
            y: TorchTensor = self.fc(self.fc(image[0, 0]))
            return y

    with pytest.raises(ExportError, match="one name would stand for several layers: fc"):
        export(source_of(Twice()), real_images[:1])


def test_a_graph_that_differs_from_torch_is_refused(
    litert_graphs: Graphs, deployed_sources: Sources, real_pixels: tuple[Pixels, ...]
) -> None:
    model = unpack(litert_graphs["simple"].content)
    stored(litert_graphs["simple"], model, "head")[:] *= np.float32(1.01)
    with pytest.raises(ExportError, match="differs from torch") as caught:
        require_equal(LitertSession(pack(model)), deployed_sources["simple"], real_pixels, "export")
    assert caught.value.where == "export of simple"


def _loosen(model: Any) -> None:
    model.subgraphs[0].tensors[0].shapeSignature = np.array([-1, 3, 32, 32], np.int32)


def _double(model: Any) -> None:
    model.subgraphs.append(model.subgraphs[0])


def _customise(model: Any) -> None:
    code = next(c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.TOPK_V2)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"Select"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_loosen, "shapes that are not fixed: "),
        (_double, "more than one subgraph: 2 of them"),
        (_customise, "control flow or custom ops: CUSTOM "),
    ],
)
def test_a_graph_that_is_not_static_is_refused(litert_graphs: Graphs, change: Callable[[Any], None], said: str) -> None:
    model = unpack(litert_graphs["simple"].content)
    change(model)
    with pytest.raises(ExportError, match=said) as caught:
        require_static(LitertGraph("simple", "fp32", pack(model)), "export of simple")
    assert caught.value.where == "export of simple"


def test_a_graph_survives_unpacking_and_packing(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...]) -> None:
    graph = litert_graphs["simple"]
    again = LitertGraph(graph.role, graph.precision, pack(unpack(graph.content)))
    assert (again.ops, again.inputs, again.outputs) == (graph.ops, graph.inputs, graph.outputs)
    one, other = (LitertSession(g.content).run(real_pixels[0]) for g in (graph, again))
    assert np.array_equal(one, other)
