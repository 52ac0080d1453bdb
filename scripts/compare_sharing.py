"""Stores a bundle's graphs whole as well, and prints what sharing weights saves and what it costs to open them, as JSON.

python scripts/compare_sharing.py artifacts/bundles/deit_tiny_cifar100

Sizes are of the router and all branches, over the dense graph where the controls are beside the bundle (build --controls).
Opening is from the manifest in memory to the first answer of one branch, or of the routed whole with every graph opened;
memory is what that added to the process, and time is the processor's. Each runs in fresh processes on one core, and both
forms take turns. Of times the quickest counts, since other programs can only add to one; the hardest branch is the same file
in both forms and says how much is left of that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
from athe_export.runtime.predictor import RoutedGraphs, preprocessing_of, unavailable
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


def stored_whole(bundle: Bundle, output: Path) -> None:
    """The same bundle with every graph whole in a file of its own."""
    graphs = {g.file: as_whole(g) for g in bundle.manifest.graphs}
    contents = {g.file: bundle.graph(g) for g in bundle.manifest.graphs}
    with staged_bundle(output) as staged:
        for file in (f for f in bundle.manifest.files if (bundle.path / f.path).is_file()):
            name = graphs[file.path].file if file.path in graphs else file.path
            staged.add(name, file.role, contents.get(file.path) or bundle.read(file.path), file.optional)
        staged.finish(dataclasses.replace(bundle.manifest, graphs=tuple(graphs.values())))
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


def opened(forms: dict[str, Path], asked: tuple[str, str, str], runs: int) -> dict[str, Any]:
    """Shared over whole in fresh processes: the quickest, and the median of memory. The first process is not counted."""
    taken: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    core = {min(os.sched_getaffinity(0))}
    for _ in range(runs + 1):
        for form, path in forms.items():
            said = subprocess.run(
                [sys.executable, "-c", OPEN, str(path), *asked],
                stdout=subprocess.PIPE,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, core),
            )
            taken[form].append(json.loads(said.stdout))
    ms = {form: min(t["ms"] for t in found[1:]) for form, found in taken.items()}
    kb = {form: statistics.median(t["kb"] for t in found[1:]) for form, found in taken.items()}
    return {
        "cpu_time_shared_over_whole": round(ms["shared"] / ms["whole"], 2),
        "memory_shared_over_whole": round(kb["shared"] / kb["whole"], 2),
        "memory_mb": {form: round(taken * 1024 / 1e6, 1) for form, taken in kb.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=15, help="processes a form")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    bundle.check()
    result: dict[str, Any] = {"bundle": bundle.manifest.name, "runs": args.runs, "sizes": sizes(bundle), "opening": {}}
    with tempfile.TemporaryDirectory() as folder:
        forms = {"shared": bundle.path, "whole": Path(folder) / "whole"}
        stored_whole(bundle, forms["whole"])
        for target, precision in bundle.manifest.systems:
            for branch in (*(b.name for b in bundle.manifest.branches), ALL):
                asked = (target, precision, branch)
                result["opening"]["/".join(asked)] = opened(forms, asked, args.runs)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
