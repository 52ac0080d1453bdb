"""Stores a bundle's graphs whole as well, and prints what sharing weights saves and what it costs to open them, as JSON.

python scripts/compare_sharing.py artifacts/bundles/deit_tiny_cifar100

Sizes are of the router and all branches, over the dense graph where the controls are beside the bundle (build --controls).
Opening is from the manifest in memory to the first answer of one branch, or of the routed whole with every graph opened;
memory is what that added to the process, and time is the processor's. Each runs in fresh processes on one core, and both
forms take turns. Of times the quickest counts, since other programs can only add to one; the hardest branch is the same file
in both forms and says how much is left of that.

--external prints instead what ONNX Runtime takes to open all branches from bytes, from weights beside the graph by path, and
from such weights in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from athe_export.bench.controls import DENSE, find_controls
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.bundle.writer import staged_bundle
from athe_export.sharing import as_whole

ALL = "all"
# BUNDLE TARGET PRECISION BRANCH, or `all`
OPEN = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from athe_export.bundle.reader import open_bundle
from athe_export.runtime.engines import unavailable
from athe_export.runtime.predictor import RoutedGraphs, preprocessing_of
def resident(): return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
path, target, precision, branch = sys.argv[1:]
bundle = open_bundle(Path(path))
unavailable([target])  # imports the engine
preprocessing = preprocessing_of(bundle.manifest)
image = np.zeros((preprocessing.source_size, preprocessing.source_size, 3), np.uint8)
before, start = resident(), time.process_time()
graphs = RoutedGraphs(bundle, target, precision)
if branch == "all":
    graphs.open()
graphs.answer(image, preprocessing, "auto" if branch == "all" else branch)
print(json.dumps({"ms": 1e3 * (time.process_time() - start), "kb": resident() - before}))
"""


# FORM FOLDER PRECISION BRANCH...
OPEN_ONNX = """
import json, re, sys, time
from pathlib import Path
import numpy as np
import onnxruntime as ort
def resident(): return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
form, folder = sys.argv[1], Path(sys.argv[2])
before, start, kept = resident(), time.process_time(), []
for name in sys.argv[3:]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    graph = folder / f"{name}.{'whole' if form == 'bytes' else 'beside'}.onnx"
    if form == "memory":
        kept.append((folder / f"{name}.bin").read_bytes())
        options.add_external_initializers_from_files_in_memory([f"{name}.bin"], kept[-1:], [len(kept[-1])])
    kept.append(ort.InferenceSession(str(graph) if form == "path" else graph.read_bytes(), options))
    image = kept[-1].get_inputs()[0]
    kept[-1].run(None, {image.name: np.zeros(image.shape, np.float32)})
print(json.dumps({"ms": 1e3 * (time.process_time() - start), "kb": resident() - before}))
"""


def stored_whole(bundle: Bundle, output: Path) -> None:
    """The same bundle with every graph whole in a file of its own."""
    graphs = {g.file: as_whole(g) for g in bundle.manifest.graphs}
    contents = {g.file: bundle.graph(g) for g in bundle.manifest.graphs}
    with staged_bundle(output) as staged:
        for file in (f for f in bundle.manifest.files if (bundle.path / f.path).is_file()):
            name = graphs[file.path].file if file.path in graphs else file.path
            staged.add(name, file.role, contents.get(file.path) or bundle.read(file.path), file.optional)
        staged.finish(bundle.manifest._replace(graphs=tuple(graphs.values())))
        staged.promote()


def sizes(bundle: Bundle) -> list[dict[str, Any]]:
    """Of each system, stored and whole, and both over the dense graph of the same target and precision."""
    controls, _ = find_controls(bundle)
    dense = {
        (g.target, g.precision): g.whole_bytes for g in (controls.manifest.graphs if controls else ()) if g.role == DENSE
    }
    found = []
    for system in bundle.manifest.sizes():
        other = dense.get((system["target"], system["precision"]))
        ratios = {f"{name}_over_dense": round(system[name] / other, 3) for name in ("bytes", "whole_bytes")} if other else {}
        found.append(system | {"dense_bytes": other} | ratios)
    return found


def taken(lines: dict[str, list[str]], runs: int) -> dict[str, dict[str, float]]:
    """Processor time and memory of Python programs, with their arguments, that take turns on one core; the first of each is
    not counted."""
    found: dict[str, list[dict[str, float]]] = {form: [] for form in lines}
    core = {min(os.sched_getaffinity(0))}
    for _ in range(runs + 1):
        for form, line in lines.items():
            said = subprocess.run(
                [sys.executable, "-c", *line],
                stdout=subprocess.PIPE,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, core),
            )
            found[form].append(json.loads(said.stdout))
    return {
        form: {"ms": min(t["ms"] for t in own[1:]), "mb": statistics.median(t["kb"] for t in own[1:]) * 1024 / 1e6}
        for form, own in found.items()
    }


def opened(forms: dict[str, Path], asked: tuple[str, str, str], runs: int) -> dict[str, Any]:
    """Shared over whole: the quickest of fresh processes, and the median of memory."""
    found = taken({form: [OPEN, str(path), *asked] for form, path in forms.items()}, runs)
    return {
        "cpu_time_shared_over_whole": round(found["shared"]["ms"] / found["whole"]["ms"], 2),
        "memory_shared_over_whole": round(found["shared"]["mb"] / found["whole"]["mb"], 2),
        "memory_mb": {form: round(of["mb"], 1) for form, of in found.items()},
    }


def external(bundle: Bundle, folder: Path, runs: int) -> dict[str, Any]:
    """By precision: each way to open all branches in ONNX Runtime, processor time over that from bytes, and memory."""
    result = {}
    for _, precision in (system for system in bundle.manifest.systems if system[0] == "onnx"):
        graphs = bundle.manifest.graphs_of("onnx", precision)
        names = [f"{b.name}.{precision}" for b in bundle.manifest.branches]
        for name, branch in zip(names, bundle.manifest.branches, strict=True):
            content = bundle.graph(graphs[branch.name])
            (folder / f"{name}.whole.onnx").write_bytes(content)
            beside = {"save_as_external_data": True, "location": f"{name}.bin"}
            onnx.save(onnx.load_from_string(content), folder / f"{name}.beside.onnx", **beside)
        found = taken({form: [OPEN_ONNX, form, str(folder), *names] for form in ("bytes", "path", "memory")}, runs)
        result[precision] = {
            form: {"cpu_time_over_bytes": round(of["ms"] / found["bytes"]["ms"], 2), "memory_mb": round(of["mb"], 1)}
            for form, of in found.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=15, help="processes a form")
    parser.add_argument("--external", action="store_true", help="ONNX weights beside the graph, in place of the comparison")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    bundle.check()
    result: dict[str, Any] = {"bundle": bundle.manifest.name, "runs": args.runs}
    with tempfile.TemporaryDirectory() as folder:
        if args.external:
            print(json.dumps(result | {"external": external(bundle, Path(folder), args.runs)}, indent=2))
            return
        result |= {"sizes": sizes(bundle), "opening": {}}
        forms = {"shared": bundle.path, "whole": Path(folder) / "whole"}
        stored_whole(bundle, forms["whole"])
        for target, precision in bundle.manifest.systems:
            for branch in (*(b.name for b in bundle.manifest.branches), ALL):
                asked = (target, precision, branch)
                result["opening"]["/".join(asked)] = opened(forms, asked, args.runs)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
