"""The graphs of a recipe's branches in every variant that a default is chosen from, as files to count or to time.

python scripts/pi/make_graphs.py RECIPE -o DIR [--target onnx|litert] [--branch NAME]

Files are named <branch>-<variant>.onnx and .tflite. Besides the recipe's branches there is `dense`, the unpruned backbone,
and the router. All come from the project's own stages, but for one that it does not offer: `static_s8`, ONNX with s8
activations in place of u8. The router's `static` is LiteRT's, with every op in int8; in ONNX it stays float. Weights are
random unless the recipe's checkpoint exists, and calibration images are noise.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from athe_export.branches import BranchGraphSource, build_branch, build_router
from athe_export.deployed import CENTRED, PLAIN, deployed
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import build_model, random_checkpoint, read_checkpoint
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import BranchSpec, LitertQuantizeSpec, OnnxQuantizeSpec, load_recipe
from athe_export.targets.litert import export as litert_export
from athe_export.targets.litert import quantize as litert_quantize
from athe_export.targets.onnx.export import export
from athe_export.targets.onnx.graph import OnnxGraph
from athe_export.targets.onnx.quantize import OP_TYPES, quantize
from athe_export.targets.onnx.simplify import simplify

Images = list[np.ndarray]
Graphs = Iterator[tuple[str, bytes]]  # variant and file


class Reader(CalibrationDataReader):
    def __init__(self, images: Images) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image}


def with_s8_activations(graph: OnnxGraph, images: Images) -> bytes:
    """The static scheme as targets/onnx/quantize.py applies it, but for the type of the activations."""
    logging.disable(logging.WARNING)  # the quantizer advises steps that the project leaves out on purpose
    with tempfile.TemporaryDirectory() as name:
        source, result = Path(name) / "fp32.onnx", Path(name) / "int8.onnx"
        onnx.save(graph.model, source)
        quantize_static(
            source,
            result,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OP_TYPES,
            nodes_to_exclude=[n.name for n in graph.model.graph.node if n.name.startswith("scorers.")],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": OP_TYPES},
        )
        return result.read_bytes()


def onnx_variants(source: BranchGraphSource, preprocessing: Preprocessing, opset: int, images: Images) -> Graphs:
    graph = simplify(export(deployed(source, preprocessing, PLAIN), opset, images[:1]))
    yield "fp32", graph.model.SerializeToString()
    if source.role == "router":
        return
    yield "static", quantize(graph, OnnxQuantizeSpec(), images).model.SerializeToString()
    yield "dynamic", quantize(graph, OnnxQuantizeSpec(scheme="dynamic_wi8_afp32"), ()).model.SerializeToString()
    yield "static_s8", with_s8_activations(graph, images)


def litert_variants(source: BranchGraphSource, preprocessing: Preprocessing, _opset: int, images: Images) -> Graphs:
    graph = litert_export.export(deployed(source, preprocessing, CENTRED), images[:1])
    yield "fp32", graph.content
    yield "static", litert_quantize.quantize(graph, LitertQuantizeSpec(), images).content
    if source.role != "router":
        dynamic = LitertQuantizeSpec(scheme="dynamic_wi8_afp32")
        yield "dynamic", litert_quantize.quantize(graph, dynamic, ()).content


Variants = Callable[[BranchGraphSource, Preprocessing, int, Images], Graphs]
VARIANTS: dict[str, tuple[str, Variants]] = {
    "onnx": (".onnx", onnx_variants),
    "litert": (".tflite", litert_variants),
}


def load_model(recipe_path: Path) -> AtheModel:
    """The recipe's model. Where its weights are random, so are biases and scales: zeros and ones would be left out."""
    file = load_recipe(recipe_path)
    recipe = file.recipe
    weights = file.resolve(recipe.checkpoint.path) if recipe.checkpoint.path else None
    checkpoint = read_checkpoint(weights) if weights and weights.exists() else random_checkpoint(recipe, 0)
    model, _ = build_model(recipe, checkpoint, str(weights))
    if not checkpoint.trained:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (p for p in model.parameters() if p.ndim == 1):
                tensor += torch.randn(tensor.shape, generator=generator) / 10
    model.head_rank = model.head_rank or (tuple(range(recipe.model.heads)),) * recipe.model.depth
    return model


def noise(size: int) -> Images:
    return [np.random.RandomState(i).randint(0, 256, (1, size, size, 3)).astype(np.uint8) for i in range(8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--target", action="append", choices=tuple(VARIANTS), help="only this one; may be repeated")
    parser.add_argument("--branch", action="append", help="only this one (dense and router too); may be repeated")
    args = parser.parse_args()
    model = load_model(args.recipe)
    recipe = model.recipe
    sources = [build_branch(model, branch) for branch in (BranchSpec("dense", recipe.model.heads), *recipe.branches)]
    sources += [build_router(model)] if model.router is not None else []
    opset = recipe.targets.onnx.opset if recipe.targets.onnx is not None else 20
    preprocessing = Preprocessing(**vars(recipe.data.preprocessing))
    args.output.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if args.branch and source.role not in args.branch:
            continue
        images = noise(source.image_size)
        for target in args.target or VARIANTS:
            suffix, variants = VARIANTS[target]
            for variant, content in variants(source, preprocessing, opset, images):
                path = args.output / f"{source.role}-{variant}{suffix}"
                path.write_bytes(content)
                print(path)


if __name__ == "__main__":
    main()
