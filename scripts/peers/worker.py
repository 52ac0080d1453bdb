"""The process that a family of peers runs in: python -m peers.worker FOLDER, then a JSON object a line on stdin.

{"do": "open", "row": [family, peer, precision, graph]}     -> {} or {"why": "..."}; opens and remembers it
{"do": "answers", "row": [...], "file": "..."}              -> {}; writes `positions` and `outputs` to the file
{"do": "query", "row": [...]}                               -> {"resize": s, "graph": s, "cpu": s}; one image
{"do": "versions", "names": [...]}                          -> {"name": "version", ...}

Every time is taken in here, around the work alone: what the pipe costs is in none of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from athe_export.dependencies import installed_version
from peers.ours import open_own
from peers.peer import OURS, RATES, Ask, Job, Row, open_peer
from peers.rates import open_product


class Worker:
    """What is open in this process."""

    def __init__(self, job: Job, clock: Callable[[], float] = time.process_time) -> None:
        self._job, self._clock = job, clock
        self._open: dict[Row, tuple[Ask, npt.NDArray[np.int64]]] = {}
        self._next: dict[Row, int] = {}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to one message."""
        if message["do"] == "versions":
            return {name: version for name in message["names"] if (version := installed_version(name))}
        row = Row(*message["row"])
        if message["do"] == "open":
            return self._opened(row)
        ask, positions = self._open[row]
        if message["do"] == "answers":
            outputs = [ask(self._job.images[i]).output[0].copy() for i in positions]
            np.savez(message["file"], positions=positions, outputs=np.stack(outputs))
            return {}
        at = self._next[row] = (self._next.get(row, -1) + 1) % len(positions)
        pixels, before = self._job.images[positions[at]], self._clock()
        asked = ask(pixels)
        return {"resize": asked.resize, "graph": asked.graph, "cpu": self._clock() - before}

    def _opened(self, row: Row) -> dict[str, Any]:
        """Opened, and asked once; whatever a package raises is the reason why the row is not measured."""
        positions = np.arange(len(self._job.images))
        try:
            if row.family == OURS:
                ask, positions = open_own(row, self._job)
            else:
                ask = open_product(row) if row.family == RATES else open_peer(row, self._job)
            ask(self._job.images[positions[0]])
        except Exception as err:
            said = (str(err).strip().splitlines() or [""])[0]
            return {"why": said if isinstance(err, LookupError | ImportError) and said else f"{type(err).__name__}: {said}"}
        self._open[row] = (ask, positions)
        return {}


def serve(job: Job, questions: TextIO, answers: TextIO) -> None:
    """Answers until there are no more questions."""
    worker = Worker(job)
    for line in questions:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print goes to the log, not between the answers
    serve(Job(Path(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
