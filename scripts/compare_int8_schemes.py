"""What int8 gains on this machine: the graphs of a recipe's branches in fp32 and in each int8 scheme, side by side.

python scripts/compare_int8_schemes.py RECIPE [--runs 200] [--dense] [--full-size]

Weights are random unless the recipe's checkpoint exists: speed does not depend on them. One thread, batch 1, variants
interleaved in random order in one run; the table gives medians as ratios to the same branch in fp32. `every op` is ONNX
Runtime's static quantization with its default op types.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from athe_export.branches import BranchGraphSource, build_branch
from athe_export.model.checkpoint import build_model, random_checkpoint, read_checkpoint
from athe_export.recipe import BranchSpec, OnnxQuantizeSpec, load_recipe
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.targets.onnx.export import export
from athe_export.targets.onnx.graph import OnnxGraph
from athe_export.targets.onnx.quantize import quantize
from athe_export.targets.onnx.simplify import simplify


class Images(CalibrationDataReader):
    def __init__(self, images: list[np.ndarray]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image}


def every_op(graph: OnnxGraph, images: list[np.ndarray]) -> bytes:
    """The library's own choice of ops, as a user who calls it without thinking gets it."""
    with tempfile.TemporaryDirectory() as name:
        source, result = Path(name) / "fp32.onnx", Path(name) / "int8.onnx"
        onnx.save(graph.model, source)
        quantize_static(
            source,
            result,
            Images(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return result.read_bytes()


def variants(source: BranchGraphSource, images: list[np.ndarray]) -> dict[str, OnnxSession]:
    graph = simplify(export(source, 20, images[:1]))
    static, dynamic = OnnxQuantizeSpec(), OnnxQuantizeSpec(scheme="dynamic_wi8_afp32")
    models = {
        "fp32": graph.model.SerializeToString(),
        "static_wi8_ai8": quantize(graph, static, images).model.SerializeToString(),
        "static_wi8_ai8, reduce_range": quantize(
            graph, dataclasses.replace(static, reduce_range=True), images
        ).model.SerializeToString(),
        "dynamic_wi8_afp32": quantize(graph, dynamic, ()).model.SerializeToString(),
        "every op": every_op(graph, images),
    }
    return {name: OnnxSession(model) for name, model in models.items()}


def medians(sessions: dict[str, OnnxSession], image: np.ndarray, runs: int) -> dict[str, float]:
    """Milliseconds, interleaved."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(runs + 5):
        order = list(sessions)
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            sessions[name].run(image)
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times[5:]) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--dense", action="store_true", help="the unpruned backbone too")
    parser.add_argument("--full-size", action="store_true", help="DeiT-Tiny/16 at 224 pixels in place of the recipe's model")
    args = parser.parse_args()
    file = load_recipe(args.recipe)
    recipe = file.recipe
    weights = file.resolve(recipe.checkpoint.path) if recipe.checkpoint.path else None
    if args.full_size:
        tiny = dataclasses.replace(recipe.model, image_size=224, patch=16, dim=192, depth=12)
        recipe, weights = dataclasses.replace(recipe, model=tiny), None
    checkpoint = read_checkpoint(weights) if weights and weights.exists() else random_checkpoint(recipe, 0)
    model, _ = build_model(recipe, checkpoint, str(weights))
    model.head_rank = model.head_rank or (tuple(range(recipe.model.heads)),) * recipe.model.depth
    size = recipe.model.image_size
    images = [np.random.RandomState(i).randn(1, 3, size, size).astype(np.float32) for i in range(8)]
    branches = list(recipe.branches)
    if args.dense:
        branches.append(BranchSpec("dense", recipe.model.heads))
    result = {}
    for branch in branches:
        found = medians(variants(build_branch(model, branch), images), images[0], args.runs)
        result[branch.name] = {name: round(found["fp32"] / ms, 2) for name, ms in found.items()}
        result[branch.name]["fp32_ms"] = round(found["fp32"], 3)
    print(json.dumps({"speedup_over_fp32": result, "runs": args.runs, "threads": 1}, indent=2))


if __name__ == "__main__":
    main()
