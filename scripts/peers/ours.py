"""Our own bundle as one more peer: router, branches, and an image that the router sends to the easiest branch."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from athe_export.bench.controls import find_controls
from athe_export.bench.rows import PRECISIONS
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.preprocessing import Pixels
from athe_export.runtime.predictor import RoutedGraphs
from peers.peer import DENSE, OURS, ROUTED_SIMPLE, ROUTER, Ask, Asked, Job, Row

ENGINES = {"litert": "LiteRT", "onnx": "ONNX Runtime"}


def own_rows(graphs: tuple[str, ...], routed: bool) -> list[Row]:
    """Every line that a bundle and its controls can have, whether they are there or not."""
    names = (*((ROUTED_SIMPLE, ROUTER) if routed else ()), *graphs)
    return [
        Row(OURS, f"athe-export {engine} {precision}", precision, name)
        for engine in ENGINES.values()
        for precision in PRECISIONS
        for name in names
    ]


def target_of(row: Row) -> str:
    """The target of one of our rows."""
    return next(target for target, engine in ENGINES.items() if row.peer == f"athe-export {engine} {row.precision}")


def open_own(row: Row, job: Job) -> tuple[Ask, npt.NDArray[np.int64]]:
    """The row, and which of the job's images it is asked with: of `routed simple` those that are routed so in this engine.

    Raises:
        LookupError: the bundle or its controls do not hold it.
        AtheExportError: a graph cannot be opened.
    """
    if job.said["bundle"] is None:
        raise LookupError(job.said["no_bundle"])
    graphs = RoutedGraphs(_holder(row, open_bundle(Path(job.said["bundle"]))), target_of(row), row.precision)
    every = np.arange(len(job.images))
    preprocessing = job.preprocessing
    if row.graph == ROUTER:
        return _router(graphs, job), every
    branch = row.graph if row.graph != ROUTED_SIMPLE else "auto"
    if branch == "auto":
        easiest = graphs.branches[0]
        every = np.array([i for i in every if graphs.branch_of(graphs.score(job.images[i], preprocessing)[0]) == easiest])
        if not len(every):
            raise LookupError(f"the router sends none of {len(job.images)} images to {easiest}")

    def ask(pixels: Pixels) -> Asked:
        spent, last = {"resize": 0.0, ROUTER: 0.0, "branch": 0.0}, time.perf_counter()

        def mark(part: str) -> None:
            nonlocal last
            now = time.perf_counter()
            spent[part] += now - last
            last = now

        answer = graphs.answer(pixels, preprocessing, branch, mark)
        int(answer.logits.argmax())
        mark("branch")
        return Asked(answer.logits[None], spent["resize"], spent[ROUTER] + spent["branch"])

    ask(job.images[every[0]])  # opens the graphs
    return ask, every


def _holder(row: Row, bundle: Bundle) -> Bundle:
    """The bundle, or its controls for what only they hold."""
    target = target_of(row)
    held = {(g.role, g.precision) for g in bundle.manifest.graphs if g.target == target}
    branches = [b.name for b in bundle.manifest.branches]
    # the router of an int8 system may be float; the system is there where its branches are
    wanted = branches[0] if row.graph in (ROUTED_SIMPLE, ROUTER) else row.graph
    if (wanted, row.precision) in held:
        return bundle
    controls, why = find_controls(bundle)
    held = {(g.role, g.precision) for g in controls.manifest.graphs if g.target == target} if controls else set()
    if controls is None or (wanted, row.precision) not in held:
        raise LookupError(f"the bundle has no such graph, and {why or 'its controls have none'}")
    return controls


def held_graph(job: Job, graph: str, precision: str) -> bytes | None:
    """The TFLite graph that our LiteRT row of this name runs; None where neither the bundle nor its controls hold one."""
    if job.said["bundle"] is None:
        return None
    try:
        holder = _holder(
            Row(OURS, f"athe-export LiteRT {precision}", precision, graph), open_bundle(Path(job.said["bundle"]))
        )
    except LookupError:
        return None
    wanted = ("litert", graph, precision)
    return holder.graph(next(g for g in holder.manifest.graphs if (g.target, g.role, g.precision) == wanted))


def _router(graphs: RoutedGraphs, job: Job) -> Ask:
    preprocessing = job.preprocessing

    def ask(pixels: Pixels) -> Asked:
        start, spent = time.perf_counter(), {}

        def mark(part: str) -> None:
            spent[part] = time.perf_counter()

        score, _ = graphs.score(pixels, preprocessing, mark)
        return Asked(np.array([[score]], np.float32), spent["resize"] - start, spent[ROUTER] - spent["resize"])

    ask(job.images[0])
    return ask


def bundle_of(path: Path, recipe_sha256: str, checkpoint_sha256: str | None) -> tuple[Bundle | None, str]:
    """The bundle of this recipe and checkpoint, checked file by file; None with the reason where there is none.

    Raises:
        BundleIntegrityError: it is there and not whole.
    """
    if not (path / "manifest.json").exists():
        return None, f"there is no bundle at {path.name}: athe-export build it, with --controls"
    bundle = open_bundle(path)
    bundle.check()
    manifest = bundle.manifest
    if (manifest.recipe["sha256"], manifest.checkpoint["sha256"]) != (recipe_sha256, checkpoint_sha256):
        return None, f"the bundle at {path.name} is of another recipe or checkpoint: build it again"
    if DENSE in {b.name for b in manifest.branches if b.prune}:
        return None, f"a branch of the bundle at {path.name} is called {DENSE} and is not"
    return bundle, ""
