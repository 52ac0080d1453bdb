"""What int8 gains on this machine: the graphs of a recipe's branches in fp32 and in each int8 scheme, side by side.

python scripts/compare_int8_schemes.py RECIPE [--target onnx|litert|both] [--runs 200] [--dense] [--full-size] [--as-trained]

Weights are random unless the recipe's checkpoint exists: speed does not depend on them. One thread pinned to one core, batch
1; all variants of a branch, of both targets, are interleaved in random order in one run. Printed are medians as ratios: to
the same branch in fp32 of the same target, and of LiteRT to ONNX Runtime; and how XNNPACK shares out each TFLite graph.
`every op` is what the library of each target quantizes when it is told of no choice of ops. Graphs are in the form that is
deployed; `as trained` are those of the module as it was trained, in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from recipe_branches import recipe_branches

from athe_export.bench.machine import pinned
from athe_export.bench.protocol import Plan, measure, of_session
from athe_export.branches import BranchGraphSource
from athe_export.deployed import CENTRED, PLAIN, deployed
from athe_export.preprocessing import Pixels, Preprocessing, Tensor
from athe_export.recipe import LitertQuantizeSpec, OnnxQuantizeSpec
from athe_export.runtime.engines import Session
from athe_export.runtime.litert_session import LitertSession, pixels_as_int8
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.targets.litert.export import export as litert_export
from athe_export.targets.litert.graph import LitertGraph
from athe_export.targets.litert.quantize import quantize as litert_quantize
from athe_export.targets.onnx.export import export as onnx_export
from athe_export.targets.onnx.graph import OnnxGraph
from athe_export.targets.onnx.quantize import quantize as onnx_quantize
from athe_export.targets.onnx.simplify import simplify

Key = tuple[str, str]  # target, variant
STATIC, DYNAMIC, EVERY_OP, AS_TRAINED = "static_wi8_ai8", "dynamic_wi8_afp32", "every op", "as trained"


class Images(CalibrationDataReader):
    def __init__(self, images: list[Pixels]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image}


def onnx_every_op(graph: OnnxGraph, images: list[Pixels]) -> bytes:
    """ONNX Runtime's own choice of ops, as a user who calls it without thinking gets it."""
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


def litert_every_op(graph: LitertGraph, images: list[Pixels]) -> bytes:
    """The same of ai-edge-quantizer; input and output stay float32, as in the other graphs."""
    job = quantizer.Quantizer(graph.content)
    job.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        job.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    (name,) = (s.signatureKey.decode() for s in job._float_model.signatureDefs)
    ranges = job.calibrate({name: [{"image": pixels_as_int8(image)} for image in images]})
    return bytes(job.quantize(ranges, enable_progress_report=False).quantized_model)


def onnx_variants(source: BranchGraphSource, images: list[Pixels], preprocessing: Preprocessing) -> dict[str, Session]:
    made, static = deployed(source, preprocessing, PLAIN), OnnxQuantizeSpec()
    graph = simplify(onnx_export(made, 20, images[:1]))
    models = {
        "fp32": graph.content,
        STATIC: onnx_quantize(graph, static, images).content,
        f"{STATIC}, reduce_range": onnx_quantize(graph, dataclasses.replace(static, reduce_range=True), images).content,
        DYNAMIC: onnx_quantize(graph, OnnxQuantizeSpec(scheme=DYNAMIC), ()).content,
        EVERY_OP: onnx_every_op(graph, images),
    }
    return {name: OnnxSession(model) for name, model in models.items()}


def litert_variants(source: BranchGraphSource, images: list[Pixels], preprocessing: Preprocessing) -> dict[str, Session]:
    graph = litert_export(deployed(source, preprocessing, CENTRED), images[:1])
    models = {
        "fp32": graph.content,
        STATIC: litert_quantize(graph, LitertQuantizeSpec(scheme=STATIC), images).content,
        DYNAMIC: litert_quantize(graph, LitertQuantizeSpec(scheme=DYNAMIC), ()).content,
        EVERY_OP: litert_every_op(graph, images),
    }
    return {name: LitertSession(model) for name, model in models.items()}


VARIANTS = {"onnx": onnx_variants, "litert": litert_variants}


def as_trained(target: str, source: BranchGraphSource, tensors: list[Tensor]) -> dict[str, Session]:
    """The plain module in fp32 and in both schemes."""
    export, quantize, spec, engine = {
        "onnx": (lambda s, t: simplify(onnx_export(s, 20, t)), onnx_quantize, OnnxQuantizeSpec, OnnxSession),
        "litert": (litert_export, litert_quantize, LitertQuantizeSpec, LitertSession),
    }[target]
    graph = export(source, tensors[:1])
    int8 = {scheme: quantize(graph, spec(scheme=scheme), tensors).content for scheme in (STATIC, DYNAMIC)}
    return {f"{AS_TRAINED}, {name}": engine(content) for name, content in {"fp32": graph.content, **int8}.items()}


def medians(sessions: dict[Key, Session], image: Pixels, preprocessing: Preprocessing, runs: int) -> dict[Key, float]:
    """Milliseconds, interleaved."""
    rows = {key: of_session(s, preprocessing.graph_input(image[0], s.input_shape)) for key, s in sessions.items()}
    run = measure(rows, Plan(rounds=runs, slice_s=0, warm_up=5))
    return {key: 1e3 * run.series[key].percentile(50) for key in sessions}


def compared(sessions: dict[Key, Session], image: Pixels, preprocessing: Preprocessing, runs: int) -> dict[str, Any]:
    """What is printed of one branch."""
    ms = medians(sessions, image, preprocessing, runs)
    result: dict[str, Any] = {}
    for target in dict.fromkeys(target for target, _ in sessions):
        own = {variant: t for (of, variant), t in ms.items() if of == target}
        faster = {variant: round(own["fp32"] / t, 2) for variant, t in own.items()}
        result[target] = {"fp32_ms": round(own["fp32"], 3), "speedup_over_fp32": faster}
        parts = {v: s.delegation() for (of, v), s in sessions.items() if of == target and isinstance(s, LitertSession)}
        if parts:
            result[target]["xnnpack"] = {
                v: {"partitions": d.partitions, "ops_outside": len(d.outside)} for v, d in parts.items()
            }
    both = [variant for target, variant in sessions if target == "litert" and ("onnx", variant) in sessions]
    if both:
        result["litert_over_onnx"] = {v: round(ms["onnx", v] / ms["litert", v], 2) for v in both}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--target", choices=(*VARIANTS, "both"), default="both")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--dense", action="store_true", help="the unpruned backbone too")
    parser.add_argument("--full-size", action="store_true", help="DeiT-Tiny/16 at 224 pixels in place of the recipe's model")
    parser.add_argument("--as-trained", action="store_true", help="the module as it was trained beside the deployed form")
    args = parser.parse_args()
    targets = tuple(VARIANTS) if args.target == "both" else (args.target,)
    sources, images, preprocessing = recipe_branches(args.recipe, args.full_size, args.dense)
    result = {}
    for source in sources:
        variants = {target: VARIANTS[target](source, images, preprocessing) for target in targets}
        if args.as_trained:
            tensors = [preprocessing.tensor(image[0], source.image_size) for image in images]
            variants = {target: own | as_trained(target, source, tensors) for target, own in variants.items()}
        sessions = {(target, name): session for target, own in variants.items() for name, session in own.items()}
        with pinned(1):
            result[source.role] = compared(sessions, images[0], preprocessing, args.runs)
    print(json.dumps({"branches": result, "runs": args.runs, "threads": 1}, indent=2))


if __name__ == "__main__":
    main()
