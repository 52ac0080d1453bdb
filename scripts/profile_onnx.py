"""Where an ONNX graph of a bundle spends its time: by kind of operation, as ONNX Runtime's own profiler has it.

python scripts/profile_onnx.py BUNDLE [--role simple] [--precision int8] [--runs 200] [--json]

One thread, pinned; what profiling takes is in the times. Kinds are those that ONNX Runtime makes of the graph on opening
it, each with a kernel of its own: QGemm is an int8 layer. BUNDLE.controls is a bundle too, and has the dense graphs."""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from athe_export import console
from athe_export.bench.machine import pinned
from athe_export.bundle.reader import open_bundle
from athe_export.errors import AtheExportError, UsageError

WARM_UP = 20


def graph_of(path: Path, role: str, precision: str) -> bytes:
    """The graph of a bundle.

    Raises:
        UsageError: the bundle has none of this role and precision.
        AtheExportError: the bundle cannot be read.
    """
    bundle = open_bundle(path)
    found = {(g.role, g.precision): g for g in bundle.manifest.graphs if g.target == "onnx"}
    if (role, precision) not in found:
        has = ", ".join(" ".join(key) for key in found) or "none"
        raise UsageError(f"there is no ONNX graph {role} {precision}", where=str(path), remedy=f"it has: {has}")
    return bundle.graph(found[role, precision])


def profile(content: bytes, runs: int) -> dict[str, tuple[float, float]]:
    """Calls and microseconds a run of each kind of operation, the slowest first."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        dtype = np.uint8 if given.type == "tensor(uint8)" else np.float32
        image = np.random.default_rng(0).integers(0, 256, given.shape).astype(dtype)
        with pinned(1):
            for _ in range(WARM_UP + runs):
                session.run(None, {given.name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    calls, spent = collections.Counter(), collections.Counter()
    for event in kernels[len(kernels) * WARM_UP // (WARM_UP + runs) :]:
        calls[event["args"]["op_name"]] += 1
        spent[event["args"]["op_name"]] += event["dur"]
    return {kind: (calls[kind] / runs, us / runs) for kind, us in spent.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--role", default="simple", help="a branch, router, or of controls dense")
    parser.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be 1 or more")
    try:
        found = profile(graph_of(args.bundle, args.role, args.precision), args.runs)
    except AtheExportError as err:
        console.print_error(err, as_json=args.json)
        sys.exit(err.exit_code)
    total = sum(us for _, us in found.values())
    if args.json:
        rows = [{"kind": kind, "calls": calls, "us": us, "share": us / total} for kind, (calls, us) in found.items()]
        console.print_json({"role": args.role, "precision": args.precision, "runs": args.runs, "kinds": rows})
        return
    rows = [(kind, f"{calls:.0f}", f"{us:.0f}", f"{us / total:.1%}") for kind, (calls, us) in found.items()]
    console.print_table(("kind", "calls", "us a run", "share"), rows)


if __name__ == "__main__":
    main()
