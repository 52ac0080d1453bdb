"""The gate, run: every target of an opened bundle over the gate's images, one at a time, as the device would."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from athe_export.bundle.reader import Bundle
from athe_export.data.source import Dataset, Progress
from athe_export.parity.gate import GateLimits, ParityReport, TargetAnswers, judge
from athe_export.parity.reference import Reference
from athe_export.runtime.predictor import RoutedGraphs, preprocessing_of
from athe_export.runtime.routing import RouterPolicy


def run_gate(
    bundle: Bundle, reference: Reference, dataset: Dataset, systems: Iterable[tuple[str, str]], progress: Progress
) -> ParityReport:
    """Holds every (target, precision) of `systems` against the reference, by the limits in the manifest.

    The same call gates a staged bundle where it is built and a copy of it on the device.
    """
    manifest = bundle.manifest
    policy = RouterPolicy(manifest.router.bounds["reference"]) if manifest.router else None
    answers = {
        manifest.system_name(target, precision): _answers(bundle, target, precision, reference, dataset, progress)
        for target, precision in systems
    }
    names = tuple(b.name for b in manifest.branches)
    limits = {f.name: manifest.gate["limits"][f.name] for f in dataclasses.fields(GateLimits)}  # newer ones pass by
    return judge(reference, policy, answers, names, GateLimits(**limits))


def _answers(
    bundle: Bundle, target: str, precision: str, reference: Reference, dataset: Dataset, progress: Progress
) -> TargetAnswers:
    """Images pass one at a time; only logits are kept."""
    graphs, preprocessing = RoutedGraphs(bundle, target, precision), preprocessing_of(bundle.manifest)
    ids, split = reference.ids, bundle.manifest.gate["split"]
    branch, logits = np.empty(len(ids), np.int64), np.empty((len(ids), reference.logits.shape[-1]), np.float32)
    for position, index in enumerate(ids):
        found = graphs.answer(preprocessing.source(dataset.image(split, int(index))), preprocessing)
        branch[position], logits[position] = graphs.branches.index(found.branch), found.logits
        if position % 50 == 49 or position + 1 == len(ids):
            progress(f"{target} {precision} on the gate's images", position + 1, len(ids))
    return TargetAnswers(branch, logits, precision)
