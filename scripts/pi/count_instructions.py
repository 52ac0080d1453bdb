"""What graphs cost on a Raspberry Pi 4: instructions that one inference executes on the emulated Cortex-A72.

python scripts/pi/count_instructions.py DIR GRAPH.onnx|GRAPH.tflite... [--runs 2] [--seed 0] [--json]

DIR is what scripts/pi/setup.sh made. Each graph runs in a process of its own, on one thread, warmed up, on a fixed input;
the inference between two marks is counted. That is done --runs times; the least count stands, and `spread` is how much more
the largest was: 0 means that it repeats to the instruction. The output is held against this machine's, bit for bit.

`least cycles` is a bound, not a time: what the busiest of the A72's parts would need if nothing else ever waited (its two
vector pipes, load, store, three instructions a cycle), with the pipe slots of LLVM's model of the core. Memory, latencies
and dependencies are not in it.

Ends with 7 where the emulator or the user land is missing, or a graph does not run in the guest; there is no other number
to fall back to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

RUN_GRAPH = Path(__file__).with_name("run_graph.py")
CLASSES = ("int_mul", "int_simd", "float", "load_store", "branch", "other")
ENGINES = {".onnx": "onnxruntime", ".tflite": "ai-edge-litert"}


def stop(code: int, message: str) -> NoReturn:
    print(f"count_instructions.py: {message}", file=sys.stderr)
    sys.exit(code)


def open_land(folder: Path) -> dict[str, Any]:
    """What setup.sh wrote last."""
    if shutil.which("qemu-aarch64") is None:
        stop(7, "not run: qemu-aarch64 is not installed; on Debian, as root: apt-get install qemu-user")
    try:
        found: dict[str, Any] = json.loads((folder / "land.json").read_text())
    except (OSError, ValueError):
        stop(7, f"not run: {folder} holds no whole user land; make one: scripts/pi/setup.sh {folder}")
    return found


def died(child: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended, in words. qemu passes the guest's signal on; as a shell's code it is 128 more."""
    code = child.returncode
    try:
        return f"killed by {signal.Signals(-code if code < 0 else code - 128).name}"
    except ValueError:
        return (child.stderr.strip().splitlines() or [f"exit code {code}"])[-1]


def in_guest(land: Path, graph: Path, inputs: Path, folder: Path, seed: int) -> tuple[dict[str, int], np.ndarray]:
    """Counts of the marked inference, and its output."""
    counts, output = folder / "counts.jsonl", folder / "guest.npy"
    counts.unlink(missing_ok=True)
    command = ["env", f"COUNTS={counts}", land / "pi", RUN_GRAPH, graph.resolve(), inputs, output, "--seed", seed]
    child = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if child.returncode:
        stop(7, f"{graph} does not run in the guest: {died(child)}")
    marks = [json.loads(line) for line in counts.read_text().splitlines()]
    found = next((m for m in marks if m.pop("tag") == 2), None)
    if found is None:
        stop(7, f"the guest ran {graph} and the counter saw no mark; make the user land anew: scripts/pi/setup.sh {land}")
    if found["not_on_pi"]:
        stop(7, f"{graph}: {found['not_on_pi']} instructions that a Raspberry Pi 4 does not have; this count means nothing")
    return found, np.load(output)


def on_this_machine(graph: Path, inputs: Path, folder: Path, seed: int) -> np.ndarray | str:
    """The output here, or why there is none."""
    output = folder / "here.npy"
    command = ["env", "ORT_DISABLE_TELEMETRY=1", sys.executable, RUN_GRAPH, graph, inputs, output, "--seed", seed]
    child = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if child.returncode:
        return f"not compared: {died(child)}"
    result: np.ndarray = np.load(output)
    return result


def compare(guest: np.ndarray, here: np.ndarray | str) -> str:
    if isinstance(here, str):
        return here
    if guest.tobytes() == here.tobytes():
        return "bit-equal"
    largest = "" if guest.argmax() == here.argmax() else ", and another is largest"
    return f"differs by {np.abs(guest - here).max():.1e}{largest}"


def least_cycles(n: dict[str, int]) -> float:
    both = (n["f0"] + n["f1"] + n["either"]) / 2
    return max(n["f0"], n["f1"], both, n["loads"], n["stores"], n["instructions"] / 3)


def measure(land: Path, graph: Path, runs: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = folder / "inputs.npz"
        here = on_this_machine(graph, inputs, folder, seed)
        found = [in_guest(land, graph, inputs, folder, seed) for _ in range(runs)]
    counts, output = min(found, key=lambda pair: pair[0]["instructions"])
    if any(o.tobytes() != output.tobytes() for _, o in found):
        stop(7, f"{graph} gives another output each time in the guest")
    if not np.isfinite(output).all():
        stop(7, f"{graph} gives values in the guest that are not finite")
    return {
        "graph": graph.name,
        "engine": ENGINES[graph.suffix],
        "bytes": graph.stat().st_size,
        "instructions": counts["instructions"],
        "spread": max(c["instructions"] for c, _ in found) - counts["instructions"],
        "classes": {k: counts[k] for k in CLASSES},
        "pipe_slots": {k: counts[k] for k in ("f0", "f1", "either", "loads", "stores")},
        "least_cycles": round(least_cycles(counts)),
        "output_sha256": hashlib.sha256(output.tobytes()).hexdigest(),
        "this_machine": compare(output, here),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; millions, and ratios to the first row."""
    first = rows[0]
    lines = ["| graph | KB | M instructions | ratio | int mul | int SIMD | float | load, store | other | spread |"]
    lines[0] += " least M cycles | ratio | output here |"
    lines.append("|---" * 13 + "|")
    for row in rows:
        c = {k: v / 1e6 for k, v in row["classes"].items()}
        cells = [row["graph"], f"{row['bytes'] / 1e3:.0f}", f"{row['instructions'] / 1e6:.1f}"]
        cells += [f"{row['instructions'] / first['instructions']:.2f}"]
        cells += [f"{c[k]:.1f}" for k in CLASSES[:4]] + [f"{c['branch'] + c['other']:.1f}", str(row["spread"])]
        cells += [f"{row['least_cycles'] / 1e6:.1f}", f"{row['least_cycles'] / first['least_cycles']:.2f}"]
        lines.append("| " + " | ".join([*cells, row["this_machine"]]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("land", type=Path, metavar="DIR")
    parser.add_argument("graphs", type=Path, nargs="+", metavar="GRAPH")
    parser.add_argument("--runs", type=int, default=2, help="processes a graph is counted in")
    parser.add_argument("--seed", type=int, default=0, help="of the input, which is noise")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for graph in args.graphs:
        if graph.suffix not in ENGINES or not graph.is_file():
            stop(2, f"{graph} is not a file that ends in .onnx or .tflite")
    land = open_land(args.land)
    rows = []
    for graph in args.graphs:
        print(f"{graph.name} …", file=sys.stderr, flush=True)
        rows.append(measure(args.land.resolve(), graph, max(1, args.runs), args.seed))
    print(json.dumps({"land": land, "rows": rows}, indent=2) if args.json else table(rows))


if __name__ == "__main__":
    main()
