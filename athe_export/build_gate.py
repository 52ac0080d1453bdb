"""The gate where a bundle is built: torch and the exported fp32 graphs are at hand, so that every hop can be measured."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from athe_export.assembly import TargetGraph, described, draft_manifest
from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.bundle.writer import StagedBundle, said_plainly
from athe_export.data.source import Progress
from athe_export.parity.gate import ParityReport
from athe_export.parity.run import answer_images, reference_policy, report_on
from athe_export.reference import TracedReference
from athe_export.system import Prepared
from athe_export.token_choice import GateImages, measure_tokens


class ExportedGraphs:
    """Every fp32 graph of a build, in a folder that is no part of the bundle: a bundle may hold int8 graphs alone."""

    def __init__(self, output: Path) -> None:
        self._staged = StagedBundle(output.with_name(f"{output.name}.exported"))
        self._entries: list[GraphEntry] = []

    @property
    def folder(self) -> Path:
        return self._staged.folder

    @property
    def entries(self) -> tuple[GraphEntry, ...]:
        """What was written so far, every target and role; files are below `folder`."""
        return tuple(self._entries)

    def add(self, target: str, graph: TargetGraph) -> None:
        """Writes one fp32 graph."""
        entry, content = described(target, graph)
        self._staged.add(entry.file, f"graph:{target}:{graph.role}:{graph.precision}", content)
        self._entries.append(entry)

    def opened(self, prepared: Prepared) -> Bundle:
        """They as a bundle of their own, which routes as the reference does."""
        self._staged.finish(draft_manifest(prepared, tuple(self._entries), {}))
        return open_bundle(self._staged.folder)


@contextlib.contextmanager
def exported_graphs(output: Path) -> Iterator[ExportedGraphs]:
    """A folder beside the staging folder, emptied of what a killed build has left and gone when the build ends.

    Raises:
        EnvironmentFailure: the place cannot be written.
    """
    exported = ExportedGraphs(output)
    with said_plainly(exported.folder):
        if exported.folder.exists():
            shutil.rmtree(exported.folder)
    try:
        yield exported
    finally:
        shutil.rmtree(exported.folder, ignore_errors=True)


def torch_on_gate(prepared: Prepared, manifest: Manifest, ids: npt.NDArray[np.int64], progress: Progress) -> TracedReference:
    """What torch answers on the gate's images, and what it keeps of them."""
    split = manifest.gate["split"]
    return prepared.reference.run_traced(prepared.dataset, split, ids, reference_policy(manifest), progress)


def gate_staged(
    prepared: Prepared, bundle: Bundle, exported: ExportedGraphs, traced: TracedReference, progress: Progress
) -> ParityReport:
    """Runs the staged bundle in the device's own runtime, and what lies between torch and it.

    Exported graphs are run for targets whose fp32 graphs the bundle does not hold, so that no branch is run twice on an
    image.
    """
    dataset, reference, beside = prepared.dataset, traced.reference, exported.opened(prepared)
    systems = bundle.manifest.systems
    answers = answer_images(bundle, reference, dataset, systems, progress)
    others = [system for system in beside.manifest.systems if system not in systems]
    exports = answer_images(beside, reference, dataset, others, progress)
    images = GateImages(dataset, bundle.manifest.gate["split"], traced, prepared.reference)
    tokens = {
        system: measure_tokens(where, system, found, images, progress)
        for where, of in ((bundle, answers), (beside, exports))
        for system, found in of.items()
    }
    return report_on(bundle.manifest, reference, answers, torch=traced.routed, exported=exports, tokens=tokens)
