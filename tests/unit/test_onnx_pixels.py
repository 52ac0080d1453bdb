"""Pixels in ONNX graphs: uint8 into the first int8 layer, by no scale but 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from athe_export.preprocessing import Pixels
from athe_export.recipe import OnnxQuantizeSpec
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.targets.onnx.graph import OnnxGraph
from athe_export.targets.onnx.pixels import pixel_tensors
from athe_export.targets.onnx.quantize import quantize
from tests.tools import graph_content

SCHEMES = ["static_wi8_ai8", "dynamic_wi8_afp32"]


@pytest.fixture(scope="module")
def simple(built_both: Path) -> OnnxGraph:
    return OnnxGraph("simple", "fp32", onnx.load_from_string(graph_content(built_both, "onnx/simple.fp32.onnx")), 0.0)


def test_a_graph_takes_pixels(simple: OnnxGraph) -> None:
    (image,) = simple.inputs
    assert (image.shape, image.dtype) == ((1, 32, 32, 3), "uint8")
    assert len(pixel_tensors(simple.model)) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_int8_graph_quantizes_pixels(simple: OnnxGraph, real_pixels: tuple[Pixels, ...], scheme: str) -> None:
    model = quantize(simple, OnnxQuantizeSpec(scheme=scheme), real_pixels).model
    assert not pixel_tensors(model)  # nothing widens them before the first layer
    readers = {node.op_type for node in model.graph.node if any("image" in name for name in node.input)}
    assert "QuantizeLinear" not in readers and "DynamicQuantizeLinear" not in readers


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pixels_as_they_are_give_what_quantizing_them_by_scale_1_gives(
    simple: OnnxGraph, real_pixels: tuple[Pixels, ...], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = np.arange(32 * 32 * 3).reshape(1, 32, 32, 3).astype(np.uint8)  # 0 and 255 in it, or dynamic scales would differ
    spec = OnnxQuantizeSpec(scheme=scheme)
    short = OnnxSession(quantize(simple, spec, real_pixels).content)
    monkeypatch.setattr("athe_export.targets.onnx.quantize.without_quantizing_pixels", lambda model: None)
    long = OnnxSession(quantize(simple, spec, real_pixels).content)
    assert np.array_equal(short.run(every), long.run(every))
