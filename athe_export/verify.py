"""Verifying a bundle anywhere: integrity, golden self-test and, with data, the parity gate. Never torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athe_export.bundle.manifest import MANIFEST, Manifest
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.data.source import DATASETS, Dataset, Progress, no_progress, open_dataset
from athe_export.errors import BundleIntegrityError, DatasetError, MissingDependency, UsageError
from athe_export.parity.gate import ParityReport
from athe_export.parity.limits import FAIL, worst
from athe_export.parity.reference import Reference, read_reference
from athe_export.parity.run import run_gate
from athe_export.parity.statistics import smallest_drop
from athe_export.runtime.engines import remedy_for
from athe_export.runtime.golden import GoldenResult, NotRun, check_golden
from athe_export.runtime.predictor import labels_of, preprocessing_of


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found; `parity` is None where no data were given. `gate_at_build` is the manifest's verdict."""

    gate_at_build: str
    golden: tuple[GoldenResult, ...]
    not_run: tuple[NotRun, ...]
    parity: ParityReport | None

    @property
    def verdict(self) -> str:
        """`fail` on a golden mismatch; else the gate's verdict, or pass where no gate was run."""
        golden = "pass" if all(g.passed for g in self.golden) else FAIL
        return worst([golden, *([self.parity.verdict] if self.parity else [])])

    @property
    def broken(self) -> tuple[str, ...]:
        """What did not hold, a line each: graphs on the golden images, then limits of the gate."""
        golden = [
            f"{g.target} {g.role} {g.precision} differs from the golden outputs by {g.max_abs_diff:.3g}, {g.tolerance:g} "
            f"is allowed" + ("" if g.same_top1 else ", and decides differently")
            for g in self.golden
            if not g.passed
        ]
        return (*golden, *(self.parity.broken if self.parity else ()))

    @property
    def remedy(self) -> str:
        """What to do about `broken`."""
        broken = {g.target for g in self.golden if not g.passed}
        if "litert" in broken:
            return "install ai-edge-litert in the version of the manifest's tools, or run another target: --target onnx"
        if broken:
            return (
                "install the versions in the manifest's tools; if this is an x86 processor without VNNI, 8-bit weights "
                "saturate on it: build with targets.onnx.quantize.reduce_range: true"
            )
        if self.verdict == FAIL:
            return "do not use this bundle here; build it again with sensitive layers float"
        return "gate on more images: raise --limit or leave it out"

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "gate_at_build": self.gate_at_build,
            "golden": [vars(g) | {"passed": g.passed} for g in self.golden],
            "not_run": [vars(n) | {"files": list(n.files)} for n in self.not_run],
            "parity": self.parity.to_json() if self.parity else None,
        }


def no_warning(text: str) -> None:
    """A sink of warnings that shows nothing."""


def verify_bundle(
    path: Path,
    data_root: Path | None = None,
    limit: int | None = None,
    progress: Progress = no_progress,
    warn: Callable[[str], None] = no_warning,
) -> VerifyReport:
    """Checks every file, runs every graph that can run here on the golden images and, with `data_root`, the gate.

    `warn` is told before the gate is run what so few images can decide.

    Raises:
        BundleIntegrityError: a file is changed, missing or extra, preprocessing gives other pixels here, or the bundle's
            labels are not the dataset's.
        MissingDependency: no target of the bundle can run here.
        DatasetError: the gate's images are not the ones the reference was made with.
    """
    bundle = open_bundle(path)
    bundle.check()
    check_preprocessing(bundle)
    golden, not_run = check_golden(bundle)
    systems = _opened(bundle, not_run)
    parity = None if data_root is None else _gate(bundle, systems, data_root, limit, progress, warn)
    return VerifyReport(bundle.manifest.verdict, golden, not_run, parity)


def _opened(bundle: Bundle, not_run: tuple[NotRun, ...]) -> tuple[tuple[str, str], ...]:
    """The (target, precision) systems of which every graph could be opened.

    Raises:
        MissingDependency: there is none, so the bundle can classify nothing here.
    """
    manifest = bundle.manifest
    closed = {file for n in not_run for file in n.files}
    systems = tuple(s for s in manifest.systems if not any(g.file in closed for g in manifest.graphs_of(*s).values()))
    if not systems:
        said = "; ".join(f"{n.target}: {n.why} ({', '.join(n.files)})" for n in not_run)
        remedy = remedy_for(n.target for n in not_run)
        raise MissingDependency(f"no target of the bundle can run here: {said}", where=str(bundle.path), remedy=remedy)
    return systems


def check_preprocessing(bundle: Bundle) -> None:
    """Raises BundleIntegrityError where this machine's preprocessing gives other pixels than the build's."""
    entry = bundle.manifest.preprocessing
    found = preprocessing_of(bundle.manifest).golden_sha256(entry.sizes)
    if found != entry.golden_sha256:
        raise BundleIntegrityError(
            f"preprocessing gives other pixels here: golden pattern {found[:12]}…, the bundle's is "
            f"{entry.golden_sha256[:12]}…",
            where=str(bundle.path),
            remedy=f"install pillow {bundle.manifest.tools.get('pillow')}, which the bundle was built with",
        )


def _gate(
    bundle: Bundle,
    systems: tuple[tuple[str, str], ...],
    data_root: Path,
    limit: int | None,
    progress: Progress,
    warn: Callable[[str], None],
) -> ParityReport:
    manifest = bundle.manifest
    reference, name = _reference(bundle), manifest.dataset["name"]
    if name not in DATASETS:
        raise BundleIntegrityError(f"the manifest's dataset is unknown here: {name!r}", where=str(bundle.path / MANIFEST))
    dataset = open_dataset(name, data_root, data_root if name == "folder" else None, progress)
    if dataset.digest != manifest.dataset["sha256"]:
        raise DatasetError(
            f"the dataset's digest is {dataset.digest[:12]}…, the bundle's is {manifest.dataset['sha256'][:12]}…",
            where=str(data_root),
            remedy="give the dataset that the bundle was gated on",
        )
    _require_in_split(bundle, reference, dataset)
    _require_same_labels(bundle, reference, dataset)
    images = len(reference.ids) if limit is None else min(limit, len(reference.ids))
    notes = () if images == len(reference.ids) else what_few_decide(manifest, images)
    for note in notes:
        warn(note)
    return run_gate(bundle, reference.first(limit), dataset, systems, progress, notes)


def what_few_decide(manifest: Manifest, images: int) -> tuple[str, ...]:
    """A line for each target: the drop that so few images tell apart, at the disagreement that the build has found."""
    confidence, limit = manifest.gate["limits"]["confidence"], manifest.gate["limits"]["max_top1_drop_pp"]
    lines = []
    for name, found in (manifest.parity or {}).get("targets", {}).items():
        changed = found.get("attribution")
        share = 1 - found["agreement"]  # all that a bundle of an older athe-export tells: as many at most
        if isinstance(changed, dict) and {"lost", "won"} <= changed.keys() and manifest.parity is not None:
            share = (changed["lost"] + changed["won"]) / manifest.parity["images"]
        smallest = 100 * smallest_drop(share, images, confidence)
        decides = "can be passed" if smallest <= limit else "cannot be passed, even if there is no drop at all"
        lines.append(
            f"{name}: {images:,} images tell a drop of {smallest:.2f} pp from none, if as many are lost and won as when the "
            f"bundle was built ({100 * share:.2f}%); the limit of {limit:g} pp {decides}"
        )
    return tuple(lines)


def _require_same_labels(bundle: Bundle, reference: Reference, dataset: Dataset) -> None:
    """Raises BundleIntegrityError where classes are called otherwise than in the dataset, or images belong to others."""
    found, names = labels_of(bundle), tuple(dataset.class_names)
    if other := [i for i in range(max(len(found), len(names))) if found[i : i + 1] != names[i : i + 1]]:
        called, meant = (", ".join(n[other[0] : other[0] + 1]) or "nothing" for n in (found, names))
        raise BundleIntegrityError(
            f"{len(other)} labels are not the dataset's: class {other[0]} is {called} in the bundle and {meant} in "
            f"{dataset.name}",
            where=str(bundle.path),
            remedy="copy the bundle again; labels in another order name every answer wrongly",
        )
    wrong = int((dataset.labels(bundle.manifest.gate["split"])[reference.ids] != reference.labels).sum())
    if wrong:
        raise BundleIntegrityError(
            f"{wrong} of the reference's {len(reference.ids)} images have another label than in {dataset.name}",
            where=str(bundle.path),
            remedy="build the bundle again; its accuracy was measured against other labels",
        )


def _require_in_split(bundle: Bundle, reference: Reference, dataset: Dataset) -> None:
    """Raises BundleIntegrityError where the dataset has no such split, or not all of the reference's images in it."""
    split, where = bundle.manifest.gate["split"], str(bundle.path)
    if split not in dataset.splits:
        raise BundleIntegrityError(f"the manifest gates on split {split!r}, which {dataset.name} does not have", where=where)
    if reference.ids.min() < 0 or reference.ids.max() >= dataset.size(split):
        raise BundleIntegrityError(f"the reference names images that split {split!r} does not have", where=where)


def _reference(bundle: Bundle) -> Reference:
    entry = bundle.manifest.file_of("reference")
    if entry is None:
        raise UsageError(
            "the bundle was never gated (untrained weights), so there is no reference to hold it against",
            where=str(bundle.path),
            remedy="verify without --data-root, or build from a trained checkpoint",
        )
    if not (bundle.path / entry.path).exists():
        raise UsageError(
            f"{entry.path} was left out of this copy, and the parity gate needs it",
            where=str(bundle.path),
            remedy=f"copy {entry.path} from where the bundle was built, or verify without --data-root",
        )
    found = read_reference(bundle.read(entry.path), entry.path)
    expected = (len(bundle.manifest.branches), len(labels_of(bundle)))
    if found.logits.shape[::2] != expected:
        raise BundleIntegrityError(
            f"the reference holds {found.logits.shape[0]} branches and {found.logits.shape[2]} classes, the bundle "
            f"{expected[0]} and {expected[1]}",
            where=entry.path,
        )
    return found
