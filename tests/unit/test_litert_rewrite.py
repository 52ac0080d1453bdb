"""Rewritten TFLite graphs: the same outputs, pixels as int8, no op that XNNPACK leaves out for its form alone."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from athe_export.branches import BranchGraphSource
from athe_export.deployed import CENTRED, deployed
from athe_export.errors import BundleIntegrityError
from athe_export.preprocessing import Pixels, Preprocessing
from athe_export.recipe import LitertQuantizeSpec
from athe_export.runtime.litert_session import LitertSession, pixels_as_int8
from athe_export.targets.litert.export import export
from athe_export.targets.litert.graph import LitertGraph, pack, unpack
from athe_export.targets.litert.quantize import quantize
from athe_export.targets.litert.rewrite import without_round_trips

Graphs = dict[str, LitertGraph]
STATIC = LitertQuantizeSpec()


@pytest.mark.parametrize("role", ["router", "simple", "complex"])
def test_a_graph_takes_pixels_as_int8_without_rounding(litert_graphs: Graphs, role: str) -> None:
    (image,) = litert_graphs[role].inputs
    assert (image.shape, image.dtype) == ((1, 32, 32, 3), "int8")
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(pixels_as_int8(every).astype(int), every.astype(int) - 128)
    model = unpack(litert_graphs[role].content)
    front = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    assert (list(front.quantization.scale), list(front.quantization.zeroPoint)) == ([1.0], [-128])


def test_what_only_moves_pixels_moves_bytes(litert_graphs: Graphs) -> None:
    widened = next(op for op in litert_graphs["simple"].ops if op.kind == "DEQUANTIZE")
    before = litert_graphs["simple"].ops[: litert_graphs["simple"].ops.index(widened)]
    assert {op.kind for op in before} == {"RESHAPE", "TRANSPOSE"} and {op.outputs[0].dtype for op in before} == {"int8"}


@pytest.mark.parametrize("role", ["simple", "complex"])
def test_every_product_of_two_activations_is_a_matmul_that_xnnpack_takes(litert_graphs: Graphs, role: str) -> None:
    graph = litert_graphs[role]
    heads = {"simple": 1, "complex": 3}[role]
    assert sum(op.kind == "BATCH_MATMUL" for op in graph.ops) == 2 * heads * 3
    assert all(op.has_weight for op in graph.ops if op.kind == "FULLY_CONNECTED")
    outside = {op.split()[0] for op in LitertSession(graph.content).delegation().outside}
    assert outside <= {"TOPK_V2", "RESHAPE", "EMBEDDING_LOOKUP"}


def test_a_plain_module_exports_as_it_is(
    tiny_sources: dict[str, BranchGraphSource], real_images: tuple[np.ndarray, ...]
) -> None:
    (image,) = export(tiny_sources["simple"], real_images[:2]).inputs
    assert (image.shape, image.dtype) == ((1, 3, 32, 32), "float32")


def test_a_static_graph_reads_its_pixels_with_no_step_between(
    litert_graphs: Graphs, real_pixels: tuple[Pixels, ...]
) -> None:
    graph = quantize(litert_graphs["simple"], STATIC, real_pixels)
    patches = next(op for op in graph.ops if op.name == "patch_embed.proj")
    front = graph.ops[: graph.ops.index(patches)]
    assert {op.kind for op in front} <= {"RESHAPE", "TRANSPOSE"}
    assert patches.inputs[0].dtype == "int8"


@pytest.mark.parametrize("role", ["router", "simple"])
def test_a_round_trip_taken_out_changes_no_output(
    litert_graphs: Graphs, real_pixels: tuple[Pixels, ...], role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = quantize(litert_graphs[role], STATIC, real_pixels)
    monkeypatch.setattr("athe_export.targets.litert.quantize.without_round_trips", lambda content: content)
    long = quantize(litert_graphs[role], STATIC, real_pixels)
    assert len(short.ops) < len(long.ops) and without_round_trips(short.content) == short.content
    one, other = LitertSession(short.content), LitertSession(long.content)
    assert all(np.array_equal(one.run(image), other.run(image)) for image in real_pixels)


def test_pixels_of_another_scale_are_refused(litert_graphs: Graphs) -> None:
    model = unpack(litert_graphs["router"].content)
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].quantization.scale = [0.5]
    with pytest.raises(BundleIntegrityError, match="not those of pixels"):
        LitertSession(pack(model))


def test_a_head_alone_is_one_partition_fewer_than_a_computed_weight_would_be(
    tiny_sources: dict[str, BranchGraphSource], tiny_preprocessing: Preprocessing, real_pixels: tuple[Pixels, ...]
) -> None:
    """Of one head the converter makes FULLY_CONNECTED with k as its weight, which XNNPACK does not take."""
    graph = export(deployed(tiny_sources["simple"], tiny_preprocessing, CENTRED), real_pixels[:2])
    model = unpack(graph.content)
    products = [
        op for op in model.subgraphs[0].operators if op.builtinOptionsType == schema.BuiltinOptions.BatchMatMulOptions
    ]
    transposed = [op for op in products if op.builtinOptions.adjY]
    assert len(transposed) == 3 and len(products) == 6
