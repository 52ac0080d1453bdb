"""The gate, run: every target of an opened bundle over the gate's images, one at a time, as the device would."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import Manifest
from athe_export.bundle.reader import Bundle
from athe_export.data.source import Dataset, Progress
from athe_export.parity.answers import TargetAnswers, TokenFindings
from athe_export.parity.gate import ParityReport, judge
from athe_export.parity.hops import Images, Key, measure_hops
from athe_export.parity.limits import GateLimits
from athe_export.parity.reference import Reference
from athe_export.preprocessing import Pixels, Preprocessing
from athe_export.runtime.predictor import RoutedGraphs, preprocessing_of
from athe_export.runtime.routing import RouterPolicy

_BLOCK = 50  # images that a CPU takes at a time


def run_gate(
    bundle: Bundle,
    reference: Reference,
    dataset: Dataset,
    systems: Iterable[tuple[str, str]],
    progress: Progress,
    notes: tuple[str, ...] = (),
) -> ParityReport:
    """Holds every (target, precision) of `systems` against the reference, by the limits in the manifest.

    The same code gates a staged bundle where it is built and a copy of it on the device; only there the way from torch
    is measured in one hop, where the bundle holds no fp32 graphs.
    """
    answers = answer_images(bundle, reference, dataset, systems, progress)
    return report_on(bundle.manifest, reference, answers, notes=notes)


def answer_images(
    bundle: Bundle, reference: Reference, dataset: Dataset, systems: Iterable[Key], progress: Progress
) -> dict[Key, TargetAnswers]:
    """What each system of a bundle answers on the images of the reference."""
    return {system: _answers(bundle, *system, reference, dataset, progress) for system in systems}


def report_on(
    manifest: Manifest,
    reference: Reference,
    answers: Mapping[Key, TargetAnswers],
    *,
    torch: TargetAnswers | None = None,
    exported: Mapping[Key, TargetAnswers] | None = None,
    tokens: Mapping[Key, TokenFindings] | None = None,
    notes: tuple[str, ...] = (),
) -> ParityReport:
    """The verdict on the systems of a manifest.

    Args:
        answers: of the manifest's systems.
        torch: the reference's answers before they were rounded for `reference.npz`; None: as rounded.
        exported: of fp32 graphs that the bundle does not hold; hops lead over them.
        tokens: of any of these systems.
    """
    policy = reference_policy(manifest)
    names = tuple(b.name for b in manifest.branches)
    known, given = {f.name for f in dataclasses.fields(GateLimits)}, manifest.gate["limits"]
    limits = GateLimits(**{name: given[name] for name in known if name in given})  # newer ones pass by
    routed, tokens = reference.routed(policy), tokens or {}
    if torch is None:
        rounded = reference.logits[routed, np.arange(len(routed))].astype(np.float32)
        torch = TargetAnswers(routed, rounded, "fp32")
    images = Images(reference.labels, routed, names)
    hops = measure_hops(images, torch, {**(exported or {}), **answers}, tokens, limits.confidence)
    called = {system: manifest.system_name(*system) for system in answers}
    named = {called[system]: found for system, found in answers.items()}
    tokens_of = {called[system]: found for system, found in tokens.items() if system in called}
    return judge(reference, policy, named, names, limits, hops, tokens_of, notes)


def reference_policy(manifest: Manifest) -> RouterPolicy | None:
    """How the reference routes; None for a single branch."""
    return RouterPolicy(manifest.router.bounds["reference"]) if manifest.router else None


def _answers(
    bundle: Bundle, target: str, precision: str, reference: Reference, dataset: Dataset, progress: Progress
) -> TargetAnswers:
    ids, routed = reference.ids, reference.routed(reference_policy(bundle.manifest))
    branch, logits = np.empty(len(ids), np.int64), np.empty((len(ids), reference.logits.shape[-1]), np.float32)
    matched, preprocessing = np.empty_like(logits), preprocessing_of(bundle.manifest)

    def answer(graphs: RoutedGraphs, at: int, source: Pixels) -> None:
        branch[at], logits[at], matched[at] = _answer(graphs, source, preprocessing, int(routed[at]))

    _each_image(bundle, (target, precision), ids, dataset, answer, progress)
    return TargetAnswers(branch, logits, precision, matched)


def answers_of_branch(
    bundle: Bundle, system: Key, branch: str, ids: npt.NDArray[np.int64], dataset: Dataset, progress: Progress
) -> npt.NDArray[np.float32]:
    """Logits [n, classes] of one branch on these images of the gate's split, whatever the router says."""
    graphs = bundle.manifest.graphs_of(*system)
    logits = np.empty((len(ids), graphs[branch].outputs[0].shape[-1]), np.float32)
    preprocessing = preprocessing_of(bundle.manifest)

    def answer(graphs: RoutedGraphs, at: int, source: Pixels) -> None:
        logits[at] = graphs.answer(source, preprocessing, branch).logits

    _each_image(bundle, system, ids, dataset, answer, progress)
    return logits


def answers_of_every_branch(
    bundle: Bundle, system: Key, ids: npt.NDArray[np.int64], dataset: Dataset, progress: Progress
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Top classes [branches, n] of all branches on these images of the gate's split, and the router's scores [n].

    Without a router all scores are 0.
    """
    preprocessing, branches = preprocessing_of(bundle.manifest), bundle.manifest.branches
    answers, scores = np.empty((len(branches), len(ids)), np.int64), np.zeros(len(ids), np.float32)

    def answer(graphs: RoutedGraphs, at: int, source: Pixels) -> None:
        if "router" in graphs.entries:
            scores[at] = graphs.score(source, preprocessing)[0]
        for position, branch in enumerate(graphs.branches):
            answers[position, at] = graphs.answer(source, preprocessing, branch).logits.argmax()

    _each_image(bundle, system, ids, dataset, answer, progress)
    return answers, scores


def _each_image(
    bundle: Bundle,
    system: Key,
    ids: npt.NDArray[np.int64],
    dataset: Dataset,
    do: Callable[[RoutedGraphs, int, Pixels], None],
    progress: Progress,
) -> None:
    """Images pass one at a time through single-threaded graphs, as on the device; every CPU has its own."""
    (target, precision), split, preprocessing = system, bundle.manifest.gate["split"], preprocessing_of(bundle.manifest)
    idle = SimpleQueue[RoutedGraphs]()
    dataset.image(split, int(ids[0]))  # what is read once for all images is read before there are threads

    def answer(positions: range) -> int:
        graphs = idle.get()
        try:
            for at in positions:
                do(graphs, at, preprocessing.source(dataset.image(split, int(ids[at]))))
        finally:
            idle.put(graphs)
        return positions.stop

    blocks = [range(start, min(start + _BLOCK, len(ids))) for start in range(0, len(ids), _BLOCK)]
    workers = min(getattr(os, "process_cpu_count", os.cpu_count)() or 1, len(blocks))
    for _ in range(workers):
        idle.put(RoutedGraphs(bundle, target, precision))
    pool = ThreadPoolExecutor(workers)
    try:
        for done in pool.map(answer, blocks):
            progress(f"{target} {precision} on the gate's images", done, len(ids))
    finally:
        pool.shutdown(cancel_futures=True)  # on a failure or Ctrl-C too: what has not begun is left


def _answer(
    graphs: RoutedGraphs, source: Pixels, preprocessing: Preprocessing, routed: int
) -> tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Branch position, its logits, and those of the reference's branch `routed`, float32 [classes] each.

    Where the router decides otherwise than the reference, the reference's branch is run too, so that a branch can be
    told from a router.
    """
    found = graphs.answer(source, preprocessing)
    branch = graphs.branches.index(found.branch)
    if branch == routed:
        return branch, found.logits, found.logits
    return branch, found.logits, graphs.answer(source, preprocessing, graphs.branches[routed]).logits
