"""How long a fresh process takes to its first answer, and the memory it has taken by then.

`bench/first_answer.py` is that process; it is run several times. The files have been read before and the modules are
compiled, as pip does where it installs them, so that it is the process that is cold and not the disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from athe_export.bench import first_answer

_TIMEOUT_S = 300
_FIGURES = (*first_answer.TIMES, *first_answer.MEMORY)


def cold_start(bundle: Path, target: str, precision: str, threads: int, photo: bytes, times: int) -> dict[str, Any]:
    """Medians over fresh processes, in milliseconds and MB (10^6 bytes); all null, with a reason, where one failed.

    `cold_start_ms` is everything after numpy and Pillow, with the modules of Pillow that read images: importing the runtime
    and the engine, opening the router and every branch with their digests checked, and the first answer.
    """
    named = {"target": target, "precision": precision, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "photo.png"
        image.write_bytes(photo)
        line = [sys.executable, "-m", first_answer.__name__, str(bundle), target, precision, str(threads), str(image)]
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
    total = round(sum(medians[name] for name in first_answer.TIMES[1:]), 2)
    return {**named, "cold_start_ms": total, **medians, "processes": times, "not_measured": None}


def _compiling(folder: Path) -> dict[str, str]:
    """The environment of a process that keeps the bytecode of its modules: below `folder` where none is to be written."""
    if not sys.dont_write_bytecode:
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
