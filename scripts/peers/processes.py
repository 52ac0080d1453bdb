"""The workers of a run, a process a family, seen from the main process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from athe_export.bench.protocol import Lap, Query
from athe_export.errors import EnvironmentFailure
from peers.peer import Job, Row

SCRIPTS = Path(__file__).resolve().parent.parent
# one thread for whatever a package counts its threads by; OpenMP's wait must not burn the core that others are timed on
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
    "LITERT_TORCH_SHOW_PROGRESS": "no",
}


class Dead(EnvironmentFailure):
    """The worker ended before it answered."""

    def __init__(self, family: str, code: int, log: Path) -> None:
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        said = f"its process ended with code {code}" + (f": {last}" if last else "")
        super().__init__(said, where=family, remedy="leave the family out: name the others with --family")


class WorkerProcess:
    """A worker and its pipe; one that dies while a row is opened is started again without that row.

    Args:
        python: the interpreter, which may be of another virtual environment.
    """

    def __init__(self, family: str, job: Job, python: str = sys.executable) -> None:
        self._family, self._job, self._python = family, job, python
        self._opened: list[Row] = []
        self._log = job.folder / f"{family}.log"
        self._process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        paths = [str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        surroundings = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)}
        with self._log.open("a") as log:
            return subprocess.Popen(
                [self._python, "-m", "peers.worker", str(self._job.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=surroundings,
            )

    def ask(self, **message: Any) -> dict[str, Any]:
        """The worker's reply.

        Raises:
            Dead: there is none.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise Dead(self._family, self._process.wait(), self._log)
        return json.loads(line)

    def open(self, row: Row) -> str | None:
        """Opens a row; or why it cannot be."""
        try:
            why = self.ask(do="open", row=_listed(row)).get("why")
        except Dead as err:
            self._process = self._started()
            for other in self._opened:
                self.ask(do="open", row=_listed(other))
            return err.what
        if why is None:
            self._opened.append(row)
        return why

    def query(self, row: Row) -> Query:
        """One image of an open row, as the protocol wants it: the worker's own times are the parts."""

        def query() -> Lap:
            found = self.ask(do="query", row=_listed(row))
            return Lap("", {"image": found["resize"] + found["graph"], "graph": found["graph"], "cpu": found["cpu"]})

        return query

    def answers(self, row: Row, file: Path) -> None:
        """Writes a row's answers to every image to a file."""
        self.ask(do="answers", row=_listed(row), file=str(file))

    def close(self) -> None:
        """Ends the worker, which ends by itself when its questions do."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def _listed(row: Row) -> list[str]:
    return [row.family, row.peer, row.precision, row.graph]


@contextlib.contextmanager
def workers(families: list[str], job: Job, pythons: Mapping[str, str]) -> Iterator[dict[str, WorkerProcess]]:
    """A worker a family, ended on the way out whatever happens."""
    with contextlib.ExitStack() as stack:
        found: dict[str, WorkerProcess] = {}
        for family in families:
            found[family] = WorkerProcess(family, job, pythons.get(family, sys.executable))
            stack.callback(found[family].close)
        yield found
