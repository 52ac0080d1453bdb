"""One TFLite file a branch, or one file with a signature a branch: what is shared, what opening one branch costs.

python scripts/compare_signatures.py RECIPE [--full-size] [--runs 15]

The separate files come from the project's own export and quantization, the common one from litert-torch with a signature a
branch and the same static quantization. In both, each branch is calibrated on images of its own, as in a build. Each opening
is a process of its own that has numpy and LiteRT alone, reads the file, creates an interpreter and runs the branch once on
one thread; both forms take turns on one core. Weights are those of the recipe's checkpoint if it is there, else random.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_quantizer import calibrator, qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.utils import qsv_utils
from recipe_branches import recipe_branches

from athe_export.branches import BranchGraphSource
from athe_export.preprocessing import Tensor
from athe_export.recipe import LitertQuantizeSpec
from athe_export.runtime.litert_session import LitertSession
from athe_export.targets.litert.export import export
from athe_export.targets.litert.graph import LitertGraph, pack, unpack
from athe_export.targets.litert.quantize import quantize

os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "no"  # its table would stand before the figures on stdout
LAYERS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
# what a device does, and nothing else in the process: opens a file (once) for each branch named after it; resident memory
# is what that added, in kB
OPEN = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from ai_edge_litert.interpreter import Interpreter
def resident(): return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before, start = resident(), time.perf_counter()
opened, runners = {}, []
for path, signature in zip(sys.argv[1::2], sys.argv[2::2]):
    if path not in opened:
        opened[path] = Interpreter(model_content=Path(path).read_bytes(), num_threads=1)
        opened[path].allocate_tensors()
    runner = opened[path].get_signature_runner(signature or None)
    image = {k: np.zeros(d["shape"], d["dtype"]) for k, d in runner.get_input_details().items()}
    runner(**image)
found = {"load_ms": 1e3 * (time.perf_counter() - start), "rss_kb": resident() - before}
times = []
for _ in range(20):
    start = time.perf_counter()
    runner(**image)
    times.append(1e3 * (time.perf_counter() - start))
print(json.dumps(found | {"run_ms": sorted(times)[10]}))
"""


def common_file(sources: list[BranchGraphSource], separate: dict[str, LitertGraph]) -> bytes:
    """One file with a signature a branch; tensors are named `<branch>/…`, layers as in the separate files."""
    import litert_torch  # reads the variable above

    converter = litert_torch
    for source in sources:
        example = (torch.zeros(1, 3, source.image_size, source.image_size),)
        converter = converter.signature(source.role, source.module, example)
    model = unpack(bytes(converter.convert().model_content()))
    for signature in model.signatureDefs:
        role = signature.signatureKey.decode()
        ops = LitertGraph(role, "fp32", only(model, role)).ops
        layers = iter([op.name for op in separate[role].ops if op.has_weight])
        graph = model.subgraphs[signature.subgraphIndex]
        for index, tensor in enumerate(graph.tensors):
            tensor.name = f"{role}/{index}".encode()
        for op, raw in zip(ops, graph.operators, strict=True):
            if op.has_weight:
                graph.tensors[raw.outputs[0]].name = f"{role}/{next(layers)}".encode()
        signature.inputs[0].name, signature.outputs[0].name = b"image", b"logits"
    return pack(model)


def only(model: Any, role: str) -> bytes:
    """The common file with the subgraph of one branch first, which an interpreter's list of ops is of."""
    copy = unpack(pack(model))
    index = next(s for s in copy.signatureDefs if s.signatureKey.decode() == role).subgraphIndex
    copy.subgraphs[0], copy.subgraphs[index] = copy.subgraphs[index], copy.subgraphs[0]
    for signature in copy.signatureDefs:
        signature.subgraphIndex = {0: index, index: 0}.get(signature.subgraphIndex, signature.subgraphIndex)
    return pack(copy)


def quantized(content: bytes, images: dict[str, list[Tensor]]) -> bytes:
    """The project's static scheme over all signatures of a file, each calibrated on its images."""
    job = quantizer.Quantizer(content)
    for kind in LAYERS:
        job.add_static_config(".*", qtyping.TFLOperationName(kind), 8, 8)
        scorers = r"^[^/]*/scorers\..*"
        job.update_quantization_recipe(scorers, qtyping.TFLOperationName(kind), algorithm_key=AlgorithmName.NO_QUANTIZE)
    for end in ("INPUT", "OUTPUT"):
        job.update_quantization_recipe(".*", qtyping.TFLOperationName(end), algorithm_key=AlgorithmName.NO_QUANTIZE)
    found = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    found.calibrate({role: [{"image": image} for image in own] for role, own in images.items()}, job._recipe_manager)
    return bytes(job.quantize(found.get_model_qsvs(), enable_progress_report=False).quantized_model)


def shared_buffers(model: Any) -> dict[str, int]:
    """Stored buffers that tensors of more than one subgraph use; weights are tensors of more than 1,024 values."""
    users = [{t.buffer for t in graph.tensors} for graph in model.subgraphs]
    sizes = {i: 0 if b.data is None else len(b.data) for i, b in enumerate(model.buffers)}
    stored = {i for i, size in sizes.items() if size}
    several = {i for i in stored if sum(i in own for own in users) > 1}
    weights = {t.buffer for g in model.subgraphs for t in g.tensors if t.shape is not None and math.prod(t.shape) > 1024}
    return {
        "weights": len(weights & stored),
        "shared_weights": len(weights & several),
        "stored_bytes": sum(sizes.values()),
        "shared_bytes": sum(sizes[i] for i in several),
    }


Use = tuple[tuple[Path, str], ...]  # files with the signature that is run, empty for the only one


def opened(forms: dict[str, Use], runs: int) -> dict[str, dict[str, float]]:
    """Medians of `OPEN` over fresh processes, the forms taking turns on one core."""
    taken: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    core = {min(os.sched_getaffinity(0))}
    for _ in range(runs):
        for form, uses in forms.items():
            said = subprocess.run(
                [sys.executable, "-c", OPEN, *(str(word) for use in uses for word in use)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, core),
            )
            taken[form].append(json.loads(said.stdout))
    return {form: {key: statistics.median(t[key] for t in found) for key in found[0]} for form, found in taken.items()}


def cost(forms: dict[str, Use], runs: int) -> dict[str, Any]:
    found = opened(forms, runs)
    ratio = {key: round(found["common"][key] / found["separate"][key], 2) for key in ("load_ms", "run_ms", "rss_kb")}
    return {
        "load_time_common_over_separate": ratio["load_ms"],
        "run_time_common_over_separate": ratio["run_ms"],
        "rss_common_over_separate": ratio["rss_kb"],
        "rss_mb": {form: round(f["rss_kb"] / 1024, 1) for form, f in found.items()},
    }


def compared(
    separate: dict[str, LitertGraph], common: bytes, images: list[Tensor], runs: int, folder: Path
) -> dict[str, Any]:
    """What is printed of one precision."""
    whole, model = folder / "common.tflite", unpack(common)
    whole.write_bytes(common)
    files = {role: folder / f"{role}.tflite" for role in separate}
    total = sum(len(g.content) for g in separate.values())
    result: dict[str, Any] = {
        "bytes": {role: len(g.content) for role, g in separate.items()} | {"sum": total, "common": len(common)},
        "bytes_common_over_sum": round(len(common) / total, 3),
        "common_file": shared_buffers(model),
    }
    for role, graph in separate.items():
        files[role].write_bytes(graph.content)
        sessions = {"separate": LitertSession(graph.content), "common": LitertSession(only(model, role))}
        answers = {form: np.stack([session.run(image) for image in images]) for form, session in sessions.items()}
        result[role] = {
            "xnnpack_partitions": {form: session.delegation().partitions for form, session in sessions.items()},
            "largest_logit": round(float(np.abs(answers["separate"]).max()), 4),
            "largest_difference": float(np.abs(answers["separate"] - answers["common"]).max()),
            "opening_it": cost({"separate": ((files[role], ""),), "common": ((whole, role),)}, runs),
        }
    every = {"separate": tuple((files[role], "") for role in separate), "common": tuple((whole, role) for role in separate)}
    return result | {"opening_all": cost(every, runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--full-size", action="store_true", help="DeiT-Tiny/16 at 224 pixels in place of the recipe's model")
    parser.add_argument("--runs", type=int, default=15, help="processes a form and branch")
    args = parser.parse_args()
    sources, pixels, preprocessing = recipe_branches(args.recipe, args.full_size, dense=False)
    images = [preprocessing.tensor(p[0], p.shape[1]) for p in pixels]
    fp32 = {source.role: export(source, images[:1]) for source in sources}
    own = {role: images[index :: len(fp32)] for index, role in enumerate(fp32)}
    int8 = {role: quantize(graph, LitertQuantizeSpec(), own[role]) for role, graph in fp32.items()}
    common = common_file(sources, fp32)
    result: dict[str, Any] = {"recipe": args.recipe.stem, "full_size": args.full_size, "runs": args.runs}
    with tempfile.TemporaryDirectory() as name:
        result["fp32"] = compared(fp32, common, images, args.runs, Path(name))
        result["int8"] = compared(int8, quantized(common, own), images, args.runs, Path(name))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
