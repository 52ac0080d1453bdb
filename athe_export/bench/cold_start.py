"""How long a fresh process takes to its first answer, and the memory it has taken by then.

python -m athe_export.bench.cold_start BUNDLE TARGET PRECISION THREADS IMAGE prints one JSON object; `cold_start` runs that
several times. The files have been read before and the modules are compiled, as pip does where it installs them, so that it
is the process that is cold and not the disk.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TIMEOUT_S = 300
_FIGURES = ("numpy_pillow_ms", "import_ms", "load_ms", "first_answer_ms", "rss_before_graphs_mb", "peak_rss_mb")


def cold_start(bundle: Path, target: str, precision: str, threads: int, photo: bytes, times: int) -> dict[str, Any]:
    """Medians over fresh processes, in milliseconds and MB (10^6 bytes); all null, with a reason, where one failed.

    `cold_start_ms` is everything after numpy and Pillow, with the modules of Pillow that read images: importing the runtime
    and the engine, opening the router and every branch with their digests checked, and the first answer.
    """
    named = {"target": target, "precision": precision, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "photo.png"
        image.write_bytes(photo)
        line = [sys.executable, "-m", __name__, str(bundle), target, precision, str(threads), str(image)]
        found = []
        for _ in range(times + 1):  # the first one compiles
            try:
                done = subprocess.run(
                    line, env=_compiling(Path(folder)), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
                )
                found.append(json.loads(done.stdout))
            except (OSError, ValueError, subprocess.TimeoutExpired) as err:
                said = err if isinstance(err, OSError | subprocess.TimeoutExpired) else _last_line(done.stderr)
                why = f"a fresh process could not answer: {said}"
                return {**named, **dict.fromkeys(("cold_start_ms", *_FIGURES)), "processes": 0, "not_measured": why}
    medians = {name: round(statistics.median(one[name] for one in found[1:]), 2) for name in _FIGURES}
    total = round(sum(medians[name] for name in ("import_ms", "load_ms", "first_answer_ms")), 2)
    return {**named, "cold_start_ms": total, **medians, "processes": times, "not_measured": None}


def _compiling(folder: Path) -> dict[str, str]:
    """The environment of a process that keeps the bytecode of its modules: below `folder` where none is to be written."""
    if not sys.dont_write_bytecode:
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _answer_once(bundle: str, target: str, precision: str, threads: str, image: str) -> dict[str, float]:
    laps = [time.perf_counter()]
    import numpy  # noqa: F401
    from PIL import Image

    Image.preinit()  # what opening the first image imports
    laps.append(time.perf_counter())
    from athe_export.runtime.predictor import Predictor

    laps.append(time.perf_counter())
    predictor = Predictor.load(bundle, target, precision, int(threads))
    before_graphs = _peak_rss_mb()
    predictor.graphs.open()
    laps.append(time.perf_counter())
    predictor.predict(image)
    laps.append(time.perf_counter())
    passed = [1e3 * (end - start) for start, end in itertools.pairwise(laps)]
    return dict(zip(_FIGURES, [*passed, before_graphs, _peak_rss_mb()], strict=True))


def _peak_rss_mb() -> float:
    """VmHWM rather than getrusage: ru_maxrss of a child starts at what its parent had when it was forked."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("the system does not tell the peak of its memory")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer_once(*sys.argv[1:])) + "\n")
