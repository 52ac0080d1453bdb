"""python -m athe_export.bench.first_answer BUNDLE TARGET PRECISION THREADS IMAGE: one JSON object on stdout.

The process whose start `cold_start` tells. Nothing is imported before the clock runs that the runtime has to import too.
"""

from __future__ import annotations

import sys
import time

TIMES = ("numpy_pillow_ms", "import_ms", "load_ms", "first_answer_ms")
MEMORY = ("rss_numpy_pillow_mb", "rss_before_graphs_mb", "peak_rss_mb")


def answer_once(bundle: str, target: str, precision: str, threads: str, image: str) -> dict[str, float]:
    """`TIMES` in milliseconds and `MEMORY` in MB (10^6 bytes), from an empty process to its first answer."""
    start = time.perf_counter()
    import numpy  # noqa: F401
    from PIL import Image

    Image.preinit()  # what opening the first image imports
    libraries, memory = time.perf_counter(), [_peak_rss_mb()]
    from athe_export.runtime.predictor import Predictor

    imported = time.perf_counter()
    predictor = Predictor.load(bundle, target, precision, int(threads))
    memory.append(_peak_rss_mb())
    predictor.graphs.open()
    loaded = time.perf_counter()
    predictor.predict(image)
    answered = time.perf_counter()
    memory.append(_peak_rss_mb())
    took = (libraries - start, imported - libraries, loaded - imported, answered - loaded)
    return {**dict(zip(TIMES, [1e3 * s for s in took], strict=True)), **dict(zip(MEMORY, memory, strict=True))}


def _peak_rss_mb() -> float:
    """VmHWM rather than getrusage: ru_maxrss of a child starts at what its parent had when it was forked."""
    with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123, pathlib is not imported yet
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    raise OSError("the system does not tell the peak of its memory")


if __name__ == "__main__":
    measured = answer_once(*sys.argv[1:])
    import json

    sys.stdout.write(json.dumps(measured) + "\n")
