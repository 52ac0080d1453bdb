"""What inferences cost on a Raspberry Pi 4: instructions that one executes on the emulated Cortex-A72.

python scripts/pi/count_instructions.py DIR BUNDLE|GRAPH.onnx|GRAPH.tflite... [--runs 2] [--seed 0] [--json]
python scripts/pi/count_instructions.py DIR BUNDLE --baseline scripts/pi/instructions.json [--update]

DIR is what scripts/pi/setup.sh made. Of a bundle, every graph is counted, and of each target one routed image a branch, from
pixels to label; its user land needs this project's wheel too. Each runs in a process of its own, on one thread, warmed up,
on a fixed input; the inference between two marks is counted. That is done --runs times, and for a graph until two runs agree
to the instruction, at most six times; the least count that stands twice is taken, or the least where none does. `agree` is
how many runs gave it, and `spread` how far apart all of them were. The output is held against this machine's.

Why a graph may need a third run: ONNX Runtime does accounts of its own in a session's first run after 2 seconds, then after
4 and so on; which run that is depends on the machine. They are some hundred instructions, and a hundred in the run behind.

With --baseline, the counts are held against those in the file of the same bundle and version of the engine. It ends with 3
where one has grown by more than 2% or a graph's does not repeat, with 4 where one has no baseline; --update writes them.

`least cycles` is a bound, not a time: what the busiest of the A72's parts would need if nothing else ever waited (its two
vector pipes, load, store, three instructions a cycle), with the pipe slots of LLVM's model of the core. Memory, latencies
and dependencies are not in it.

Ends with 7 where the emulator or the user land is missing, with 1 where something does not run in the guest; there is no
other number to fall back to.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baseline import Counts, compare, read_baseline, write_baseline
from land import Land, died, open_land, stop

from athe_export.bundle.reader import open_bundle
from athe_export.errors import BundleIntegrityError

RUN_GRAPH = Path(__file__).with_name("run_graph.py")
ROUTED_IMAGE = Path(__file__).with_name("routed_image.py")
CLASSES = ("int_mul", "int_simd", "float", "load_store", "branch", "other")
ENGINES = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}
TARGETS = {".onnx": "onnx", ".tflite": "litert"}
MOST_RUNS = 6  # of a graph, until two agree


@dataclass(frozen=True)
class Subject:
    """What is counted: a graph file, or a branch of a bundle for one routed image; `content` is a bundle's whole graph."""

    name: str
    target: str
    file: Path
    branch: str | None = None
    content: bytes | None = None

    def command(self, folder: Path, output: Path, seed: int) -> list[object]:
        """Script and arguments; the inputs of a graph are drawn once, into the folder."""
        if self.branch is not None:
            return [ROUTED_IMAGE, self.file, self.target, self.branch, output]
        graph = self.file
        if self.content is not None:
            graph = folder / f"graph{self.file.suffix}"
            graph.write_bytes(self.content)
        return [RUN_GRAPH, graph, folder / "inputs.npz", output, "--seed", seed]

    @property
    def bytes(self) -> int | None:
        if self.branch:
            return None
        return self.file.stat().st_size if self.content is None else len(self.content)


def subjects_of(path: Path) -> list[Subject]:
    """Of a graph itself; of a bundle every graph, and one routed image a target and branch."""
    path = path.resolve()
    if path.suffix in TARGETS and path.is_file():
        return [Subject(path.name, TARGETS[path.suffix], path)]
    try:
        bundle = open_bundle(path)
    except BundleIntegrityError as err:
        stop(2, f"{path} is neither a bundle nor a file that ends in .onnx or .tflite: {err.what}")
    graphs = bundle.manifest.graphs
    found = [  # put together here, where a bundle holds a part of one
        Subject(f"{g.role} {g.precision}", g.target, path / g.file, content=bundle.graph(g)) for g in graphs
    ]
    targets = dict.fromkeys(g.target for g in graphs)
    branches = [b.name for b in bundle.manifest.branches] if bundle.manifest.router else []
    return found + [Subject(f"routed {b}", t, path, b) for t in targets for b in branches]


def in_guest(land: Land, subject: Subject, folder: Path, seed: int) -> tuple[dict[str, int], np.ndarray]:
    """Counts of the marked inference, and its output."""
    counts, output = folder / "counts.jsonl", folder / "guest.npy"
    counts.unlink(missing_ok=True)
    child = land.run(*subject.command(folder, output, seed), counts=counts)
    if child.returncode:
        stop(1, f"{subject.name} of {subject.file} does not run in the guest: {died(child)}")
    found = last_mark(counts.read_text())
    if found is None:
        stop(1, f"the guest ran {subject.name} and the counter saw no mark; make {land.folder} anew: scripts/pi/setup.sh")
    if found["not_on_pi"]:
        stop(
            1,
            f"{subject.name}: {found['not_on_pi']} instructions that a Raspberry Pi 4 does not have; this means nothing",
        )
    return found, np.load(output)


def last_mark(lines: str) -> dict[str, int] | None:
    """The counts between the two marks, as the counter writes them: a line a mark, each since the mark before."""
    marks = [json.loads(line) for line in lines.splitlines()]
    return next(({k: n for k, n in m.items() if k != "tag"} for m in marks if m["tag"] == 2), None)


def on_this_machine(subject: Subject, folder: Path, seed: int) -> np.ndarray | str:
    """The output here, or why there is none."""
    output = folder / "here.npy"
    command = [sys.executable, *map(str, subject.command(folder, output, seed))]
    child = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"})
    if child.returncode:
        return f"not compared: {died(child)}"
    result: np.ndarray = np.load(output)
    return result


def against(guest: np.ndarray, here: np.ndarray | str) -> str:
    if isinstance(here, str):
        return here
    if guest.tobytes() == here.tobytes():
        return "bit-equal"
    largest = "" if guest.argmax() == here.argmax() else ", and another is largest"
    return f"differs by {np.abs(guest - here).max():.1e}{largest}"


def least_cycles(n: dict[str, int]) -> float:
    both = (n["f0"] + n["f1"] + n["either"]) / 2
    return max(n["f0"], n["f1"], both, n["loads"], n["stores"], n["instructions"] / 3)


def agreed(totals: Sequence[int]) -> tuple[int, int]:
    """The least count that stands twice, or the least where none does, and how often it stands."""
    often = collections.Counter(totals)
    taken = min((count for count in often if often[count] > 1), default=min(totals))
    return taken, often[taken]


def measure(land: Land, subject: Subject, runs: int, seed: int) -> dict[str, Any]:
    found: list[tuple[dict[str, int], np.ndarray]] = []
    most = max(runs, MOST_RUNS) if runs > 1 and subject.branch is None else runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = on_this_machine(subject, folder, seed)
        for _ in range(most):
            found.append(in_guest(land, subject, folder, seed))
            totals = [c["instructions"] for c, _ in found]
            taken, agree = agreed(totals)
            if len(found) >= runs and agree > 1:
                break
    counts, output = found[totals.index(taken)]
    if any(o.tobytes() != output.tobytes() for _, o in found):
        stop(1, f"{subject.name} gives another output each time in the guest")
    if not np.isfinite(output).all():
        stop(1, f"{subject.name} gives values in the guest that are not finite")
    engine = ENGINES[subject.target]
    return {
        "graph": subject.name,
        "engine": f"{engine} {land.about['packages'][engine]}",
        "routed": subject.branch is not None,
        "bytes": subject.bytes,
        "instructions": counts["instructions"],
        "runs": len(found),
        "agree": agree,
        "spread": max(totals) - min(totals),
        "classes": {k: counts[k] for k in CLASSES},
        "pipe_slots": {k: counts[k] for k in ("f0", "f1", "either", "loads", "stores")},
        "least_cycles": round(least_cycles(counts)),
        "output_sha256": hashlib.sha256(output.tobytes()).hexdigest(),
        "this_machine": against(output, here),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; millions, and ratios to the first row."""
    first = rows[0]
    lines = ["| engine | graph | KB | M instructions | ratio | int mul | int SIMD | float | load, store | other | agree |"]
    lines[0] += " least M cycles | ratio | output here |"
    lines.append("|---" * 14 + "|")
    for row in rows:
        c = {k: v / 1e6 for k, v in row["classes"].items()}
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1e3:.0f}"
        cells = [row["engine"], row["graph"], size, f"{row['instructions'] / 1e6:.1f}"]
        cells += [f"{row['instructions'] / first['instructions']:.2f}"]
        cells += [f"{n:.1f}" for n in (*(c[k] for k in CLASSES[:4]), c["branch"] + c["other"])]
        cells += [f"{row['agree']} of {row['runs']}"]
        cells += [f"{row['least_cycles'] / 1e6:.1f}", f"{row['least_cycles'] / first['least_cycles']:.2f}"]
        lines.append("| " + " | ".join([*cells, row["this_machine"]]) + " |")
    return "\n".join(lines)


def counted(rows: list[dict[str, Any]]) -> dict[str, Counts]:
    """Instructions by engine with its version, and row."""
    found: dict[str, Counts] = {}
    for row in rows:
        found.setdefault(row["engine"], {})[row["graph"]] = row["instructions"]
    return found


def hold_against(path: Path, bundle: str, rows: list[dict[str, Any]]) -> int:
    """Says how each row stands to the baseline; the exit code."""
    compared = compare(read_baseline(path), bundle, counted(rows))
    restless = [row for row in rows if row["agree"] < 2 and not row["routed"]]
    for row in compared:
        print(("FAIL " if row.failed else "no baseline " if row.undecided else "ok ") + row.said(), file=sys.stderr)
    for row in restless:
        said = f"no two of {row['runs']} runs agree, which are up to {row['spread']} instructions apart"
        print(f"FAIL {row['engine']} {row['graph']}: {said}", file=sys.stderr)
    if any(row.failed for row in compared) or restless:
        print("instructions have grown by more than 2%, or do not repeat; if that is meant, --update", file=sys.stderr)
        return 3
    if any(row.undecided for row in compared):
        print(f"not all could be held against {path}: count this version there too, with --update", file=sys.stderr)
        return 4
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("land", type=Path, metavar="DIR")
    parser.add_argument("paths", type=Path, nargs="+", metavar="BUNDLE|GRAPH")
    parser.add_argument("--runs", type=int, default=2, help="processes that each is counted in, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the input, which is noise")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="hold the counts of one bundle against this file")
    parser.add_argument("--update", action="store_true", help="write them into the baseline in place of that")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.update and args.baseline is None:
        parser.error("--update writes into a baseline: add --baseline FILE")
    if args.runs < (1 if args.baseline is None else 2):
        parser.error("--runs counts from 1, and with --baseline from 2: one run cannot show that counts repeat")
    if args.baseline is not None and len(args.paths) > 1:
        parser.error("a baseline is of one bundle: give one")
    subjects = [s for path in args.paths for s in subjects_of(path)]
    if args.baseline is not None:
        try:
            baseline = read_baseline(args.baseline)
        except ValueError as err:
            stop(2, str(err))
    land = open_land(args.land)
    if not (land.folder / "instruction_counter.so").exists():
        stop(7, f"not run: {land.folder} has no counter that qemu loads; scripts/pi/setup.sh said why when it was made")
    rows = []
    for subject in subjects:
        print(f"{subject.name} {subject.target} …", file=sys.stderr, flush=True)
        rows.append(measure(land, subject, args.runs, args.seed))
    print(json.dumps({"land": land.about, "rows": rows}, indent=2) if args.json else table(rows))
    if args.baseline is not None:
        name = args.paths[0].resolve().name
        if args.update:
            write_baseline(args.baseline, baseline, name, counted(rows))
        sys.exit(hold_against(args.baseline, name, rows))


if __name__ == "__main__":
    main()
