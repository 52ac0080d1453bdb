"""`build --controls`: the bundle beside the bundle that `bench` holds it against.

It has the router, every branch and, as the hardest branch, the dense backbone, all in both precisions. Its bounds send no
image to the dense one. What the bundle holds too is the same graph, byte for byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from athe_export.assembly import TargetGraph, add_golden, add_labels, described, draft_manifest
from athe_export.bench.controls import DENSE, controls_path
from athe_export.branches import BranchGraphSource, build_branch
from athe_export.build_gate import ExportedGraphs
from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.bundle.writer import StagedBundle, staged_bundle
from athe_export.calibrators import AUTO
from athe_export.data.calibration import BranchShare
from athe_export.data.source import Progress
from athe_export.errors import ExportError, RecipeError
from athe_export.graphs import export_graph, is_quantized, quantize_job
from athe_export.layer_precision import with_kept
from athe_export.parity.run import answers_of_branch
from athe_export.recipe import BranchSpec, LitertTarget, OnnxTarget, Recipe
from athe_export.reference import TorchReference
from athe_export.report.html import report_html
from athe_export.runtime.golden import check_golden
from athe_export.runtime.routing import RouterPolicy
from athe_export.sharing import add_graphs, as_whole
from athe_export.stages import StageTimer
from athe_export.system import Prepared
from athe_export.targets.litert.graph import LitertGraph
from athe_export.targets.onnx.graph import OnnxGraph

CONTROL = "control"  # the verdict of such a bundle
_NOWHERE = 1.0  # no difficulty is above it, so nothing is routed to the branch behind this bound


@contextlib.contextmanager
def staged_controls(output: Path, wanted: bool) -> Iterator[StagedBundle | None]:
    """The staging folder of an output's controls; None where none are wanted."""
    if not wanted:
        yield None
        return
    with staged_bundle(controls_path(output)) as staged:
        yield staged


def require_room_for_dense(recipe: Recipe) -> None:
    """Raises RecipeError where another branch has the dense control's name."""
    for branch in recipe.branches:
        if branch.name == DENSE and (branch.prune or branch.heads != recipe.model.heads):
            raise RecipeError(
                f"--controls adds the whole backbone as branch {DENSE!r}, and a branch that drops tokens or heads has "
                "that name",
                where="branches",
                remedy="give that branch another name",
            )


def fill_controls(
    controls: StagedBundle, prepared: Prepared, bundle: Bundle, exported: ExportedGraphs, timer: StageTimer
) -> None:
    """Writes the controls of a bundle that is staged and has passed its gate.

    Args:
        bundle: the staged one.
        exported: the fp32 graphs of every role.

    Raises:
        ExportError: the backbone cannot be exported or quantized, or golden outputs are not repeated.
    """
    whole = _with_dense(prepared)
    graphs = [(as_whole(g), bundle.graph(g)) for g in bundle.manifest.graphs]
    for target in prepared.file.recipe.targets.names:
        graphs += _graphs(whole, target, bundle.manifest, exported, timer)
    with timer.stage("controls: write"):
        entries = add_graphs(controls, graphs, prepared.file.recipe.share_weights)
    with timer.stage("controls: golden"):
        add_labels(controls, whole)
        manifest = controls.finish(_draft(whole, bundle.manifest, entries))
        manifest = controls.finish(add_golden(controls, whole, manifest))
    if prepared.system.trained:
        with timer.stage("controls: accuracy of the dense backbone"):
            measured = _accuracy(open_bundle(controls.folder), prepared, timer.watch.progress)
            manifest = manifest._replace(controls={"accuracy": measured})
    controls.add("report.html", "report", report_html(manifest, prepared.dataset.class_names).encode())
    controls.finish(manifest)
    with timer.stage("controls: verify"):
        _require_repeated(open_bundle(controls.folder))


def _with_dense(prepared: Prepared) -> Prepared:
    """The same with the whole backbone as the hardest branch, to which no image is routed."""
    recipe, system, routing = prepared.file.recipe, prepared.system, prepared.routing
    if any(b.name == DENSE for b in recipe.branches):
        return prepared
    spec = BranchSpec(DENSE, recipe.model.heads)
    sources = (*system.sources, build_branch(system.model, spec))
    every = BranchShare(tuple(range(len(prepared.images.sources))), ())
    policy = routing.policy and RouterPolicy((*routing.policy.bounds, _NOWHERE))
    return dataclasses.replace(
        prepared,
        file=dataclasses.replace(
            prepared.file, recipe=dataclasses.replace(recipe, branches=(*recipe.branches, spec), bench=None)
        ),
        system=dataclasses.replace(system, sources=sources),
        reference=TorchReference(sources, prepared.images.preprocessing),
        routing=dataclasses.replace(routing, policy=policy, shares=(*routing.shares, every)),
    )


def _graphs(
    whole: Prepared, target: str, manifest: Manifest, exported: ExportedGraphs, timer: StageTimer
) -> Iterator[tuple[GraphEntry, bytes]]:
    """What the bundle does not hold: the dense backbone, and each branch in the other precision."""
    spec = getattr(whole.file.recipe.targets, target)
    held = {(g.role, g.precision) for g in manifest.graphs if g.target == target}
    fp32 = {g.role: g for g in exported.entries if g.target == target}
    for source in whole.system.sources:
        graph = None
        if (source.role, "fp32") not in held:
            if source.role in fp32:
                yield fp32[source.role], (exported.folder / fp32[source.role].file).read_bytes()
            else:
                with timer.stage(f"controls: {target}: export {source.role}"):
                    graph = export_graph(whole, source, spec)
                    yield described(target, graph)
        if (source.role, "int8") not in held and _becomes_int8(source, spec):
            with timer.stage(f"controls: {target}: quantize {source.role}"):
                job = quantize_job(target, whole, source, graph or _reopened(fp32[source.role], exported.folder))
                yield described(target, job.quantize(_settled(spec.quantize, target, manifest), job.images()))


def _becomes_int8(source: BranchGraphSource, spec: OnnxTarget | LitertTarget) -> bool:
    """Branches alone: a router that the bundle holds in fp32 serves both precisions, and its bounds are fitted to it."""
    return source.role != "router" and is_quantized(source, dataclasses.replace(spec, precisions=("int8", "fp32")))


def _settled(spec: Any, target: str, manifest: Manifest) -> Any:
    """How the bundle's own graphs were quantized: with the calibrator that was chosen and what a search has kept float."""
    if spec.calibrator == AUTO:
        chosen = manifest.calibration.get("calibrators", {}).get(target, "min_max")  # a bundle of fp32 alone chose none
        spec = dataclasses.replace(spec, calibrator=chosen)
    search = ((manifest.precision or {}).get(target) or {}).get("search") or {}
    return with_kept(spec, search.get("keep_float", ()))


def _reopened(entry: GraphEntry, folder: Path) -> TargetGraph:
    content = (folder / entry.file).read_bytes()
    if entry.target == "litert":
        return LitertGraph(entry.role, entry.precision, content)
    return OnnxGraph(entry.role, entry.precision, onnx.load_from_string(content), entry.mmacs)


def _draft(whole: Prepared, manifest: Manifest, graphs: tuple[GraphEntry, ...]) -> Manifest:
    """As of a bundle, with the bounds of the one that it belongs to."""
    draft = draft_manifest(whole, graphs, manifest.calibration)
    router = draft.router
    if router is not None and manifest.router is not None and len(draft.branches) > len(manifest.branches):
        bounds = {target: (*own, _NOWHERE) for target, own in manifest.router.bounds.items()}
        router = router._replace(bounds=bounds)
    return draft._replace(router=router, verdict=CONTROL, controls={"accuracy": []}, bench=None)


def _accuracy(controls: Bundle, prepared: Prepared, progress: Progress) -> list[dict[str, Any]]:
    """Top-1 of the dense backbone on the gate's images, of every target and precision."""
    gate, dataset = prepared.file.recipe.data.gate, prepared.dataset
    size = dataset.size(gate.split)
    ids = np.arange(size if gate.limit is None else min(gate.limit, size), dtype=np.int64)
    labels, found = dataset.labels(gate.split)[ids], []
    for target, precision in controls.manifest.systems:
        logits = answers_of_branch(controls, (target, precision), DENSE, ids, dataset, progress)
        top1 = float((logits.argmax(-1) == labels).mean())
        found.append({"target": target, "precision": precision, "images": len(ids), "top1": round(top1, 6)})
    return found


def _require_repeated(bundle: Bundle) -> None:
    bundle.check()
    results, not_run = check_golden(bundle)
    if not_run or not all(r.bit_equal for r in results):
        raise ExportError("the staged controls do not repeat their own golden outputs", where=str(bundle.path))
