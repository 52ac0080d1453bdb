"""The ONNX target on tiny real graphs: each step's promise, and each promise broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from athe_export.branches import BranchGraphSource, build_branch
from athe_export.calibrators import calibrators_of
from athe_export.errors import CalibrationError, ExportError, RecipeError
from athe_export.model.athe import AtheModel
from athe_export.preprocessing import Tensor
from athe_export.recipe import OnnxQuantizeSpec, OnnxTarget, Targets, load_recipe
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.targets.equality import require_equal
from athe_export.targets.keep_float import require_layers
from athe_export.targets.onnx.export import export
from athe_export.targets.onnx.graph import OnnxGraph, require_static, weighted_nodes
from athe_export.targets.onnx.quantize import quantize
from athe_export.targets.onnx.simplify import simplify

OPSET = next(f for f in dataclasses.fields(OnnxTarget) if f.name == "opset").metadata


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, ...]:
    random = np.random.RandomState(0)
    return tuple(random.randn(1, 3, 32, 32).astype(np.float32) for _ in range(6))


@pytest.fixture(scope="module")
def source(tiny_inputs: Path) -> BranchGraphSource:
    recipe = load_recipe(tiny_inputs / "recipe.yaml").recipe
    model = AtheModel(recipe)
    model.initialise(7)
    model.head_rank = ((2, 1, 0),) * 3
    return build_branch(model.eval(), recipe.branches[0])


@pytest.fixture(scope="module")
def graph(source: BranchGraphSource, images: tuple[Tensor, ...]) -> OnnxGraph:
    return simplify(export(source, 20, images))


def test_the_fp32_graph_is_torch_within_the_stated_error(
    graph: OnnxGraph, source: BranchGraphSource, images: tuple[Tensor, ...]
) -> None:
    require_equal(OnnxSession(graph.content), source, images, "test")
    assert graph.inputs[0].shape == (1, 3, 32, 32) and graph.outputs[0].shape == (1, 100)


def test_a_graph_that_differs_from_torch_is_refused(
    graph: OnnxGraph, source: BranchGraphSource, images: tuple[Tensor, ...]
) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(graph.model)
    head = next(i for i in changed.graph.initializer if i.name == "head.weight")
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) * np.float32(1.01), "head.weight"))
    with pytest.raises(ExportError, match="differs from torch"):
        require_equal(OnnxSession(changed.SerializeToString()), source, images, "test")


def test_layers_carry_their_torch_names(graph: OnnxGraph) -> None:
    names = {n.name for n in graph.model.graph.node}
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.2.mlp.fc2", "scorers.1", "head"} <= names


def test_macs_are_those_of_the_layers(graph: OnnxGraph) -> None:
    """Counted by hand: patch embedding, one block on 17 tokens, two on 7 (6 kept and CLS), one head of 8, the head."""

    def block(tokens: int) -> int:
        return tokens * 24 * (3 * 8) + tokens * 8 * 24 + 2 * tokens * tokens * 8 + 2 * tokens * 24 * 96

    by_hand = 16 * 24 * 192 + block(17) + 16 * 24 + 2 * block(7) + 24 * 100
    assert graph.mmacs == pytest.approx(by_hand / 1e6, abs=1e-3)


def test_static_int8_covers_every_layer_but_the_scorer_and_names_what_stays_float(
    graph: OnnxGraph, images: tuple[Tensor, ...]
) -> None:
    quantized = quantize(graph, OnnxQuantizeSpec(), images)
    assert len(quantized.int8_ops) == 3 * 4 + 1
    assert "Conv patch_embed.proj" in quantized.float_ops
    assert "scorers.1" not in quantized.int8_ops
    assert "Gemm scorers.1" in quantized.float_ops
    assert sum(op.startswith("Softmax") for op in quantized.float_ops) == 3
    assert sum(op.startswith("MatMul") for op in quantized.float_ops) == 6
    assert OnnxSession(quantized.model.SerializeToString()).run(images[0]).shape == (1, 100)


@pytest.mark.parametrize("calibrator", calibrators_of(OnnxQuantizeSpec))
def test_every_calibrator_keeps_the_logits_close(calibrator: str, graph: OnnxGraph, images: tuple[Tensor, ...]) -> None:
    quantized = OnnxSession(quantize(graph, OnnxQuantizeSpec(calibrator=calibrator), images).model.SerializeToString())  # type: ignore[arg-type]
    plain = OnnxSession(graph.model.SerializeToString())
    for image in images:
        exact, found = plain.run(image).ravel(), quantized.run(image).ravel()
        assert np.corrcoef(exact, found)[0, 1] > 0.97


@pytest.mark.parametrize("calibrator", calibrators_of(OnnxQuantizeSpec))
def test_values_that_are_not_finite_are_refused(calibrator: str, graph: OnnxGraph, images: tuple[Tensor, ...]) -> None:
    """A checkpoint whose first MLP overflows."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    node = next(n for n in model.graph.node if n.name == "blocks.0.mlp.fc1")
    weight = next(i for i in model.graph.initializer if i.name == node.input[1])
    huge = np.float32(1e38) * np.sign(onnx.numpy_helper.to_array(weight))
    weight.CopyFrom(onnx.numpy_helper.from_array(huge, weight.name))
    with pytest.raises(CalibrationError, match="not finite on the calibration images"):
        quantize(dataclasses.replace(graph, model=model), OnnxQuantizeSpec(calibrator=calibrator), images)  # type: ignore[arg-type]


def test_mse_never_takes_a_wider_range_than_min_max_and_cuts_where_it_pays(
    graph: OnnxGraph, images: tuple[Tensor, ...]
) -> None:
    def steps(calibrator: str) -> dict[str, float]:
        model = quantize(graph, OnnxQuantizeSpec(calibrator=calibrator), images).model.graph  # type: ignore[arg-type]
        stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.initializer}
        return {n.input[0]: float(stored[n.input[1]]) for n in model.node if n.op_type == "QuantizeLinear"}

    whole, least = steps("min_max"), steps("mse")
    assert whole.keys() == least.keys() and len(whole) == 3 * 4 + 1
    assert all(least[name] <= whole[name] * 1.0001 for name in whole)
    assert any(least[name] < 0.98 * whole[name] for name in whole)


def test_a_calibrator_that_was_not_settled_is_refused(graph: OnnxGraph, images: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match="by name"):
        quantize(graph, OnnxQuantizeSpec(calibrator="auto"), images)


def test_calibrating_in_chunks_sees_every_image(graph: OnnxGraph, images: tuple[Tensor, ...]) -> None:
    """The image of the largest activation last, beyond the first chunk: its range must reach the scale."""

    def scale_of(stream: list[Tensor]) -> float:
        graph_int8 = quantize(graph, OnnxQuantizeSpec(), stream).model.graph
        name = next(n.input[1] for n in graph_int8.node if n.op_type == "QuantizeLinear" and "gelu" in n.input[0])
        return float(onnx.numpy_helper.to_array(next(i for i in graph_int8.initializer if i.name == name)))

    loudest = max(images, key=lambda image: scale_of([image]))
    quiet = [image for image in images if image is not loudest]
    everything = scale_of([*quiet * 4, loudest])
    assert everything > scale_of(quiet * 4) and everything >= scale_of([loudest])


def test_the_dynamic_scheme_quantizes_linear_layers_without_calibration(
    graph: OnnxGraph, images: tuple[Tensor, ...]
) -> None:
    quantized = quantize(graph, OnnxQuantizeSpec(scheme="dynamic_wi8_afp32"), ())
    assert len(quantized.int8_ops) == 3 * 4 + 1
    assert sum(op.startswith("MatMul node") for op in quantized.float_ops) == 6
    assert "MatMul scorers.1_MatMul" in quantized.float_ops
    assert any(op.startswith("Conv") for op in quantized.float_ops)
    OnnxSession(quantized.model.SerializeToString()).run(images[0])


def test_keep_float_keeps_what_its_globs_name(graph: OnnxGraph, images: tuple[Tensor, ...]) -> None:
    quantized = quantize(graph, OnnxQuantizeSpec(keep_float=("blocks.*.mlp.fc2", "head")), images)
    assert {"Gemm head", "Gemm blocks.1.mlp.fc2"} <= set(quantized.float_ops)
    assert len(quantized.int8_ops) == 3 * 3


def test_keeping_every_linear_layer_float_is_refused(graph: OnnxGraph, images: tuple[Tensor, ...]) -> None:
    """The patch convolution that is left stays float for this target in any case."""
    with pytest.raises(RecipeError, match="leaves nothing of branch simple to quantize") as caught:
        quantize(graph, OnnxQuantizeSpec(keep_float=("blocks.*", "head")), images)
    assert caught.value.where == "targets.onnx.quantize.keep_float" and "fp32" in caught.value.remedy


def test_a_keep_float_glob_without_a_match_is_refused(source: BranchGraphSource) -> None:
    def check(*globs: str) -> None:
        require_layers(Targets(onnx=OnnxTarget(quantize=OnnxQuantizeSpec(keep_float=globs))), {"simple": source.layers})

    check("blocks.*.mlp.fc2", "patch_embed.proj", "head")
    with pytest.raises(RecipeError, match=r"'blocks\.9\.\*' matches no layer") as error:
        check("head", "blocks.9.*")
    assert error.value.where == "targets.onnx.quantize.keep_float"


def test_layers_that_globs_see_are_the_graphs_layers(graph: OnnxGraph, source: BranchGraphSource) -> None:
    assert [node.name for node, _ in weighted_nodes(graph.model)] == list(source.layers)


def test_what_is_counted_as_int8_is_what_onnx_runtime_fuses(
    graph: OnnxGraph, images: tuple[Tensor, ...], tmp_path: Path
) -> None:
    import onnxruntime

    quantized = quantize(graph, OnnxQuantizeSpec(), images)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(quantized.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = [n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert fused.count("QGemm") == len(quantized.int8_ops) == 3 * 4 + 1
    assert fused.count("Conv") == 1 and "QLinearConv" not in fused


def test_static_quantization_without_images_is_refused(graph: OnnxGraph) -> None:
    with pytest.raises(CalibrationError, match="no calibration images"):
        quantize(graph, OnnxQuantizeSpec(), ())


def test_reduce_range_stores_seven_bit_weights(graph: OnnxGraph, images: tuple[Tensor, ...]) -> None:
    for reduce, most in ((False, 127), (True, 64)):
        quantized = quantize(graph, OnnxQuantizeSpec(reduce_range=reduce), images).model
        stored = [i for i in quantized.graph.initializer if i.data_type == TensorProto.INT8 and len(i.dims) >= 2]
        peak = max(int(np.abs(onnx.numpy_helper.to_array(i).astype(int)).max()) for i in stored)
        assert peak <= most and peak > most // 2


def _model(shape: list[int | str], nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("image", "logits")]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_dynamic_shape_a_nameless_node_and_control_flow_are_refused() -> None:
    relu = helper.make_node("Relu", ["image"], ["logits"], name="relu")
    require_static(_model([1, 4], [relu]), "test")
    with pytest.raises(ExportError, match="shapes that are not fixed"):
        require_static(_model(["batch", 4], [relu]), "test")
    with pytest.raises(ExportError, match="nameless nodes"):
        require_static(_model([1, 4], [helper.make_node("Relu", ["image"], ["logits"])]), "test")
    inner = helper.make_node("Identity", ["image"], ["inner"], name="inner")
    body = helper.make_graph([inner], "then", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 4])])
    condition = helper.make_node(
        "Constant", [], ["yes"], name="c", value=helper.make_tensor("t", TensorProto.BOOL, [], [True])
    )
    branch = helper.make_node("If", ["yes"], ["logits"], name="if", then_branch=body, else_branch=body)
    with pytest.raises(ExportError, match=r"data-dependent ops: If if"):
        require_static(_model([1, 4], [condition, branch]), "test")


@pytest.mark.parametrize("opset", range(OPSET["min"], OPSET["max"] + 1))
def test_every_opset_that_a_recipe_may_name_gives_an_int8_graph_of_that_opset(
    opset: int, source: BranchGraphSource, images: tuple[Tensor, ...]
) -> None:
    plain = simplify(export(source, opset, images[:1]))  # held against torch in there
    quantized = quantize(plain, OnnxQuantizeSpec(), images)
    assert [o.version for o in quantized.model.opset_import if o.domain == ""] == [opset]
    assert len(quantized.int8_ops) == 3 * 4 + 1
    assert "Conv patch_embed.proj" in quantized.float_ops
    exact, found = (OnnxSession(g.model.SerializeToString()).run(images[0]).ravel() for g in (plain, quantized))
    assert np.corrcoef(exact, found)[0, 1] > 0.97


@pytest.mark.parametrize("opset", [7, 26])  # before LayerNormalization; beyond what torch's exporter converts to
def test_an_opset_that_torch_cannot_write_is_one_clear_error(
    opset: int, source: BranchGraphSource, images: tuple[Tensor, ...]
) -> None:
    with pytest.raises(ExportError, match=f"the graph is not at opset {opset}") as caught:
        export(source, opset, images[:1])
    assert (caught.value.exit_code, caught.value.where) == (8, "simple")
    assert "targets.onnx.opset: 20" in caught.value.remedy


def test_cls_attention_scores_need_no_trained_scorer(tiny: Callable[..., Path], images: tuple[Tensor, ...]) -> None:
    branches = [{"name": "only", "heads": 3, "prune": [{"after_blocks": 1, "keep": 0.5}], "scorer": "cls_attention"}]
    model = AtheModel(load_recipe(tiny(branches=branches, router=None)).recipe)
    model.initialise(0)
    source = build_branch(model.eval(), model.recipe.branches[0])
    simplified = simplify(export(source, 20, images))
    require_equal(OnnxSession(simplified.content), source, images, "test")
    assert not any("scorers" in n.name for n in simplified.model.graph.node)
