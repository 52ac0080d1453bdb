"""The gate, run: every target of an opened bundle over the gate's images, one at a time, as the device would."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from athe_export.bundle.manifest import Manifest
from athe_export.bundle.reader import Bundle
from athe_export.data.source import Dataset, Progress
from athe_export.parity.answers import TargetAnswers, TokenFindings
from athe_export.parity.gate import ParityReport, judge
from athe_export.parity.hops import Images, Key, measure_hops
from athe_export.parity.limits import GateLimits
from athe_export.parity.reference import Reference
from athe_export.runtime.predictor import RoutedGraphs, preprocessing_of
from athe_export.runtime.routing import RouterPolicy


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
    limits = GateLimits(
        **{f.name: manifest.gate["limits"][f.name] for f in dataclasses.fields(GateLimits)}  # newer ones pass by
    )
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
    """Images pass one at a time; only logits are kept.

    Where the router decides otherwise than the reference, the reference's branch is run too, so that a branch can be
    told from a router.
    """
    graphs, preprocessing = RoutedGraphs(bundle, target, precision), preprocessing_of(bundle.manifest)
    ids, split = reference.ids, bundle.manifest.gate["split"]
    routed = reference.routed(reference_policy(bundle.manifest))
    branch, logits = np.empty(len(ids), np.int64), np.empty((len(ids), reference.logits.shape[-1]), np.float32)
    matched = np.empty_like(logits)
    for position, index in enumerate(ids):
        source = preprocessing.source(dataset.image(split, int(index)))
        found = graphs.answer(source, preprocessing)
        branch[position], logits[position] = graphs.branches.index(found.branch), found.logits
        matched[position] = found.logits
        if branch[position] != routed[position]:
            matched[position] = graphs.answer(source, preprocessing, graphs.branches[routed[position]]).logits
        if position % 50 == 49 or position + 1 == len(ids):
            progress(f"{target} {precision} on the gate's images", position + 1, len(ids))
    return TargetAnswers(branch, logits, precision, matched)
