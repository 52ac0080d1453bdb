"""Quantization for LiteRT on tiny real graphs: what becomes int8, what stays float, and what is refused."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from ai_edge_quantizer import calibrator, qtyping, quantizer

from athe_export.branches import BranchGraphSource
from athe_export.calibrators import calibrators_of
from athe_export.errors import CalibrationError, ExportError, RecipeError
from athe_export.preprocessing import Pixels, Tensor
from athe_export.recipe import LitertQuantizeSpec, LitertTarget, OnnxTarget, Targets
from athe_export.runtime.litert_session import LitertSession
from athe_export.targets.keep_float import kept_float, require_layers
from athe_export.targets.litert.export import export
from athe_export.targets.litert.graph import LitertGraph, unpack
from athe_export.targets.litert.quantize import quantize, require_delegation

Graphs = dict[str, LitertGraph]
Sources = dict[str, BranchGraphSource]
STATIC, DYNAMIC = LitertQuantizeSpec(), LitertQuantizeSpec(scheme="dynamic_wi8_afp32")


def layers_of(graph: LitertGraph) -> set[str]:
    return {op.name for op in graph.ops if op.has_weight}


def int8_layers(graph: LitertGraph) -> set[str]:
    return {op.name for op in graph.ops if op.has_weight and op.is_int8}


def kinds(graph: LitertGraph) -> Counter[str]:
    return Counter(op.kind for op in graph.ops)


def input_scale(graph: LitertGraph) -> float:
    """Step of the int8 image that the first layer of a static graph reads."""
    model = unpack(graph.content)
    first = next(op for op in model.subgraphs[0].operators if model.subgraphs[0].tensors[op.outputs[0]].type == 9)
    return float(model.subgraphs[0].tensors[first.outputs[0]].quantization.scale[0])


@pytest.fixture(scope="module")
def plain(tiny_sources: Sources, real_images: tuple[Tensor, ...]) -> Graphs:
    """Graphs of the modules as they were trained, whose float images have a range that a test can choose."""
    return {role: export(tiny_sources[role], real_images[:2]) for role in ("router", "simple")}


@pytest.fixture(scope="module")
def static(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...]) -> Graphs:
    return {role: quantize(graph, STATIC, real_pixels) for role, graph in litert_graphs.items()}


@pytest.mark.parametrize("role", ["simple", "complex"])
def test_static_int8_is_the_linear_layers_and_the_patch_embedding_and_nothing_else(
    litert_graphs: Graphs, static: Graphs, role: str
) -> None:
    heads = {"simple": 1, "complex": 3}[role]
    found = static[role]
    scorers = {name for name in layers_of(found) if name.startswith("scorers.")}
    assert len(scorers) == 1 and "patch_embed.proj" in int8_layers(found)
    assert int8_layers(found) == layers_of(litert_graphs[role]) - scorers
    assert sorted(found.int8_ops) == sorted(int8_layers(found))  # not one op without a weight
    assert len(found.int8_ops) == 3 * 4 + 2
    assert f"FULLY_CONNECTED {scorers.pop()}" in found.float_ops
    floats = Counter(op.split()[0] for op in found.float_ops)
    assert (floats["BATCH_MATMUL"], floats["SOFTMAX"], floats["GELU"], floats["TOPK_V2"]) == (6 * heads, 3 * heads, 3, 1)


@pytest.mark.parametrize("role", ["router", "simple", "complex"])
def test_an_int8_graph_takes_and_gives_what_the_fp32_graph_does(litert_graphs: Graphs, static: Graphs, role: str) -> None:
    found = static[role]
    assert (found.role, found.precision) == (role, "int8")
    assert (found.inputs, found.outputs) == (litert_graphs[role].inputs, litert_graphs[role].outputs)
    assert [t.dtype for t in (*found.inputs, *found.outputs)] == ["int8", "float32"]
    assert found.mmacs == litert_graphs[role].mmacs
    assert len(found.content) < len(litert_graphs[role].content)


def test_the_router_is_int8_in_every_op_and_one_partition(static: Graphs) -> None:
    assert static["router"].float_ops == ()
    assert {"router.features.0.0", "router.features.13.0", "router.classifier"} <= set(static["router"].int8_ops)
    found = LitertSession(static["router"].content).delegation()
    assert (found.partitions, found.outside) == (1, ())


@pytest.mark.parametrize("spec", [STATIC, DYNAMIC], ids=lambda s: s.scheme)
@pytest.mark.parametrize("role", ["simple", "complex"])
def test_an_int8_branch_has_no_more_partitions_than_the_fp32_one(
    litert_graphs: Graphs, real_pixels: tuple[Pixels, ...], spec: LitertQuantizeSpec, role: str
) -> None:
    before = LitertSession(litert_graphs[role].content).delegation()
    after = LitertSession(quantize(litert_graphs[role], spec, real_pixels).content).delegation()
    assert after.partitions == before.partitions == 2
    assert [op.split()[0] for op in after.outside] == ["TOPK_V2", "RESHAPE", "EMBEDDING_LOOKUP"]


@pytest.mark.parametrize("spec", [STATIC, DYNAMIC], ids=lambda s: s.scheme)
def test_int8_logits_stay_close(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...], spec: LitertQuantizeSpec) -> None:
    exact = LitertSession(litert_graphs["complex"].content)
    found = LitertSession(quantize(litert_graphs["complex"], spec, real_pixels).content)
    for image in real_pixels:
        assert np.corrcoef(exact.run(image).ravel(), found.run(image).ravel())[0, 1] > 0.97


@pytest.mark.parametrize("calibrator", calibrators_of(LitertQuantizeSpec))
@pytest.mark.parametrize("role", ["router", "complex"])
def test_every_calibrator_keeps_the_outputs_close(
    litert_graphs: Graphs, real_pixels: tuple[Pixels, ...], calibrator: str, role: str
) -> None:
    exact = LitertSession(litert_graphs[role].content)
    spec = LitertQuantizeSpec(calibrator=calibrator)  # type: ignore[arg-type]
    found = LitertSession(quantize(litert_graphs[role], spec, real_pixels).content)
    pairs = np.stack([(exact.run(image).ravel(), found.run(image).ravel()) for image in real_pixels], 1)
    # the library's own default does badly by a router, whose every op is int8
    least = 0.97 if role == "complex" else 0.6 if calibrator == "moving_average" else 0.85
    assert np.corrcoef(pairs[0].ravel(), pairs[1].ravel())[0, 1] > least


def test_a_percentile_cuts_off_a_lone_outlier_and_mse_keeps_it_where_the_loss_would_be_larger(
    plain: Graphs, real_images: tuple[Tensor, ...]
) -> None:
    outlier = real_images[0].copy()
    outlier[0, 0, 0, 0] = 100.0
    scales = {
        name: input_scale(quantize(plain["simple"], LitertQuantizeSpec(calibrator=name), [*real_images, outlier]))  # type: ignore[arg-type]
        for name in ("min_max", "percentile", "mse")
    }
    assert scales["percentile"] < 0.2 * scales["min_max"]
    assert 0.8 * scales["min_max"] < scales["mse"] < 1.001 * scales["min_max"]


def test_a_calibrator_that_was_not_settled_is_refused(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...]) -> None:
    with pytest.raises(ValueError, match="by name"):
        quantize(litert_graphs["simple"], LitertQuantizeSpec(calibrator="auto"), real_pixels)


def test_the_dynamic_scheme_reads_no_image_and_leaves_activations_float(litert_graphs: Graphs) -> None:
    found = quantize(litert_graphs["simple"], DYNAMIC, ())
    assert int8_layers(found) == layers_of(litert_graphs["simple"]) - {"scorers.1"}
    assert kinds(found) == kinds(litert_graphs["simple"])  # nothing between the layers to turn float into int8
    widened = next(op for op in found.ops if op.kind == "DEQUANTIZE")  # pixels, behind which all is float
    assert {t.dtype for op in found.ops[found.ops.index(widened) :] for t in op.outputs} <= {"float32", "int32"}


def test_dynamic_layers_give_float_while_all_others_stay_static(
    litert_graphs: Graphs, static: Graphs, real_pixels: tuple[Pixels, ...]
) -> None:
    spec = LitertQuantizeSpec(dynamic=("blocks.*.mlp.fc2", "blocks.1.*"), keep_float=("blocks.1.mlp.fc1",))
    found = quantize(litert_graphs["simple"], spec, real_pixels)
    named = {*(f"blocks.{i}.mlp.fc2" for i in range(3)), "blocks.1.attn.qkv", "blocks.1.attn.proj"}
    assert int8_layers(found) == int8_layers(static["simple"]) - {"blocks.1.mlp.fc1"}
    given = {op.name: op.outputs[0].dtype for op in found.ops if op.has_weight and op.is_int8}
    assert {name for name, dtype in given.items() if dtype == "float32"} == named


def test_a_router_is_static_whatever_the_branches_scheme(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...]) -> None:
    for spec in (DYNAMIC, LitertQuantizeSpec(dynamic=("*",))):
        assert quantize(litert_graphs["router"], spec, real_pixels).float_ops == ()


# what stays float


@pytest.mark.parametrize("spec", [STATIC, DYNAMIC], ids=lambda s: s.scheme)
def test_keep_float_keeps_what_its_globs_name_and_nothing_of_a_longer_name(
    litert_graphs: Graphs, real_pixels: tuple[Pixels, ...], spec: LitertQuantizeSpec
) -> None:
    globs = ("blocks.*.mlp.fc2", "patch_embed.proj", "head", "blocks.0.attn.qk?")
    kept = {"scorers.1", "patch_embed.proj", "head", "blocks.0.attn.qkv", *(f"blocks.{i}.mlp.fc2" for i in range(3))}
    found = quantize(litert_graphs["simple"], LitertQuantizeSpec(spec.scheme, globs), real_pixels)
    assert int8_layers(found) == layers_of(litert_graphs["simple"]) - kept
    assert {op.split()[1] for op in found.float_ops} >= kept


def test_part_of_a_router_can_stay_float(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...]) -> None:
    spec = LitertQuantizeSpec(keep_float=("router.classifier",))
    found = quantize(litert_graphs["router"], spec, real_pixels)
    assert int8_layers(found) == layers_of(litert_graphs["router"]) - {"router.classifier"}


def _targets(*globs: str, precisions: tuple[str, ...] = ("int8",)) -> Targets:
    return Targets(litert=LitertTarget(precisions, LitertQuantizeSpec(keep_float=globs)))  # type: ignore[arg-type]


def test_globs_are_matched_against_the_names_in_the_graph(litert_graphs: Graphs, tiny_sources: Sources) -> None:
    layers = {role: source.layers for role, source in tiny_sources.items()}
    assert {role: set(names) for role, names in layers.items()} == {r: layers_of(g) for r, g in litert_graphs.items()}
    require_layers(_targets("blocks.*.mlp.fc2", "router.*", "scorers.2", "head"), layers)
    assert kept_float(layers["router"], ("router.*",)) == list(layers["router"])
    assert kept_float(layers["simple"], ("router.*",)) == ["scorers.1"]


@pytest.mark.parametrize("glob", ["blocks.9.*", "router.features", "qkv", "Head", "head;", ""])
def test_a_glob_of_no_layer_is_refused_and_layers_are_named(tiny_sources: Sources, glob: str) -> None:
    layers = {role: source.layers for role, source in tiny_sources.items()}
    with pytest.raises(RecipeError, match=re.escape(f"{glob!r} matches no layer")) as caught:
        require_layers(_targets("head", glob), layers)
    assert caught.value.where == "targets.litert.quantize.keep_float"
    assert "blocks.0.attn.proj" in caught.value.remedy


@pytest.mark.parametrize("glob", ["blocks.9.*", "router.*"])
def test_a_glob_of_no_dynamic_layer_is_refused_under_its_own_key(tiny_sources: Sources, glob: str) -> None:
    """A router is static in every op, so that none of its layers can be dynamic."""
    layers = {role: source.layers for role, source in tiny_sources.items()}
    targets = Targets(litert=LitertTarget(("int8",), LitertQuantizeSpec(dynamic=("head", glob))))
    with pytest.raises(RecipeError, match=re.escape(f"dynamic {glob!r} matches no layer of any branch")) as caught:
        require_layers(targets, layers)
    assert caught.value.where == "targets.litert.quantize.dynamic"


@pytest.mark.parametrize("globs", [("*",), ("blocks.*", "patch_embed.*", "head")])
def test_keeping_everything_of_an_int8_branch_float_is_refused(tiny_sources: Sources, globs: tuple[str, ...]) -> None:
    layers = {role: source.layers for role, source in tiny_sources.items()}
    with pytest.raises(RecipeError, match="leaves nothing of branch simple to quantize") as caught:
        require_layers(_targets(*globs), layers)
    assert caught.value.where == "targets.litert.quantize.keep_float" and "fp32" in caught.value.remedy
    require_layers(_targets(*globs, precisions=("fp32",)), layers)  # nothing was to be int8


def test_one_list_means_the_same_for_both_targets(tiny_sources: Sources) -> None:
    layers = {role: source.layers for role, source in tiny_sources.items()}
    both = Targets(onnx=OnnxTarget(), litert=_targets("router.*").litert)
    require_layers(both, layers)
    assert both.names == ("onnx", "litert")


# calibration


@pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors")  # the library's, of how it calibrates
def test_ranges_are_those_of_all_images_however_early_the_loudest_came(
    plain: Graphs, real_images: tuple[Tensor, ...]
) -> None:
    """With the library's own moving average the range would have shrunk again."""
    quiet = [image * np.float32(0.1) for image in real_images] * 2
    outlier = real_images[0] * np.float32(3)
    stream = [outlier, *quiet]
    lowest, highest = min(float(i.min()) for i in stream), max(float(i.max()) for i in stream)
    assert input_scale(quantize(plain["simple"], STATIC, stream)) == pytest.approx((highest - lowest) / 255, 1e-3)

    averaged = calibrator.Calibrator(plain["simple"].content, num_threads=1)
    job = quantizer.Quantizer(plain["simple"].content)
    job.add_static_config(".*", qtyping.TFLOperationName.CONV_2D, 8, 8)
    (signature,) = averaged.get_signature_list()
    averaged.calibrate({signature: [{"image": i} for i in stream]}, job._recipe_manager)
    patches = next(op for op in plain["simple"].ops if op.kind == "CONV_2D").inputs[0].name
    assert float(np.max(averaged.get_model_qsvs()[patches]["max"])) < 0.9 * highest, (
        "the library's default no longer forgets: the comment is out of date"
    )


def test_calibrating_in_chunks_sees_every_image(plain: Graphs, real_images: tuple[Tensor, ...]) -> None:
    """The outlier last, beyond the first chunk of 16, and from a stream that can be read once."""
    outlier = real_images[0] * np.float32(3)
    usual = input_scale(quantize(plain["simple"], STATIC, real_images))
    widened = input_scale(quantize(plain["simple"], STATIC, iter([*real_images, outlier])))
    assert widened > 1.5 * usual


@pytest.mark.parametrize("role", ["router", "simple"])
def test_static_quantization_without_images_is_refused(litert_graphs: Graphs, role: str) -> None:
    with pytest.raises(CalibrationError, match="no calibration images") as caught:
        quantize(litert_graphs[role], STATIC, ())
    assert caught.value.where == "targets.litert.quantize" and caught.value.exit_code == 2


@pytest.mark.parametrize("role", ["router", "simple"])
def test_values_without_a_range_are_refused_before_a_graph_is_made_of_them(
    plain: Graphs, real_images: tuple[Tensor, ...], role: str
) -> None:
    """The runtime would not refuse their scales but crash."""
    endless = real_images[0].copy()
    endless[0, 0, 3, 3] = np.nan
    with pytest.raises(CalibrationError, match="not finite on the calibration images") as caught:
        quantize(plain[role], STATIC, [*real_images, endless])
    assert caught.value.where == role


def test_the_same_images_give_the_same_file(litert_graphs: Graphs, static: Graphs, real_pixels: tuple[Pixels, ...]) -> None:
    assert quantize(litert_graphs["simple"], STATIC, real_pixels).content == static["simple"].content


def test_quantizing_says_nothing(
    litert_graphs: Graphs,
    real_pixels: tuple[Pixels, ...],
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    quantize(litert_graphs["simple"], STATIC, real_pixels[:2])
    assert capfd.readouterr() == ("", "")
    assert list(recwarn) == []


# delegation


def test_more_partitions_than_in_fp32_are_refused_with_the_op_and_the_key(litert_graphs: Graphs) -> None:
    """A router with int8 weights and float activations: XNNPACK does not take such depthwise convolutions."""
    job = quantizer.Quantizer(litert_graphs["router"].content)
    for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        job.add_dynamic_config(".*", qtyping.TFLOperationName(kind), 8)
    broken = LitertGraph("router", "int8", bytes(job.quantize(None).quantized_model))
    found = LitertSession(broken.content).delegation()
    assert found.partitions > 1 and all(op.startswith("DEPTHWISE_CONV_2D router.features.") for op in found.outside)
    with pytest.raises(ExportError, match="the fp32 graph in 1; what it leaves out: DEPTHWISE_CONV_2D") as caught:
        require_delegation(litert_graphs["router"], broken)
    assert f"in {found.partitions} partitions" in caught.value.what
    assert caught.value.where == "quantization of router"
    key, glob = re.search(r"(targets\.\S+): \[\"(.+)\"\]", caught.value.remedy).groups()  # type: ignore[union-attr]
    assert key == "targets.litert.quantize.keep_float"
    assert kept_float([op.split()[1] for op in found.outside], (glob,)), "the remedy names no layer that was left out"
