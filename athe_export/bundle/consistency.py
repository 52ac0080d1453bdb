"""Whether a manifest hangs together: a well-typed one can still name a graph that is not there. Standard library alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from athe_export.bundle.manifest import Manifest, TensorInfo

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_RESIZE = ("bicubic", "bilinear")
_LIMITS = ("max_top1_drop_pp", "min_agreement", "min_router_agreement", "confidence")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def inconsistencies(manifest: Manifest) -> list[str]:
    """Everything that would stop a runtime half-way; empty for a manifest that can be used."""
    return [
        *_roles(manifest),
        *_files(manifest),
        *_graphs(manifest),
        *_preprocessing(manifest),
        *_gate(manifest),
        *_parity(manifest),
        *_precision(manifest),
        *_bench(manifest),
    ]


def _roles(m: Manifest) -> Iterator[str]:
    names = [b.name for b in m.branches]
    if len(set(names)) != len(names) or not all(_NAME.fullmatch(n) and n != "router" for n in names):
        yield f"branch names clash or are not names: {names}"
    lone = m.controls is not None and m.router is None  # a branch and its dense control, with nothing to route
    if not names or ((len(names) > 1) != (m.router is not None) and not lone):
        yield f"{len(names)} branches {'with' if m.router else 'without'} a router"
    if m.router is None:
        return
    for target in ("reference", *m.targets):
        bounds = m.router.bounds.get(target)
        if bounds is None or len(bounds) != len(names) - 1 or list(bounds) != sorted(bounds):
            yield f"router.bounds.{target} must be {len(names) - 1} ascending bounds, not {bounds}"


def _files(m: Manifest) -> Iterator[str]:
    paths = [f.path for f in m.files]
    if len(set(paths)) != len(paths):
        yield "files lists a path twice"
    listed = {f.path: (f.bytes, f.sha256) for f in m.files}
    whole = {g.file for g in m.graphs if g.borrows is None}
    for g in m.graphs:
        if listed.get(g.file) != (g.bytes, g.sha256):
            yield f"graph {g.file} is not among the files with the same bytes and sha256"
        if g.borrows is not None and g.borrows.file not in whole:
            yield f"graph {g.file} borrows from {g.borrows.file}, which is no whole graph"


def _graphs(m: Manifest) -> Iterator[str]:
    roles = {*(["router"] if m.router else []), *(b.name for b in m.branches)}
    if not m.graphs:
        yield "there are no graphs"
    for target in m.targets:
        found = {g.role for g in m.graphs if g.target == target}
        if found != roles:
            yield f"target {target} has graphs of {sorted(found)}, the roles are {sorted(roles)}"
        elif not m.precisions(target):
            yield f"target {target} has no precision that all branches share"
    same = [(g.target, g.role, g.precision) for g in m.graphs]
    if len(set(same)) != len(same):
        yield "graphs lists one graph of a target, role and precision twice"
    tolerance = m.golden.get("tolerance")
    for g in m.graphs:
        if len(g.inputs) != 1 or len(g.outputs) != 1 or not _is_image(g.inputs[0]):
            yield f"graph {g.file} must have one output and one input: [1, size, size, 3] pixels, [1, 3, size, size] float32"
        if not isinstance(tolerance, dict) or not _number(tolerance.get(g.precision)):
            yield f"golden.tolerance.{g.precision} is missing"


def _is_image(given: TensorInfo) -> bool:
    """Pixels, channels last, of eight bits; or a normalised image, channels first."""
    shape, size = given.shape, given.shape[-2:-1]
    return (shape == (1, *size * 2, 3) and given.dtype in ("uint8", "int8")) or (
        shape == (1, 3, *size * 2) and given.dtype == "float32"
    )


def _preprocessing(m: Manifest) -> Iterator[str]:
    p = m.preprocessing
    if p.resize not in _RESIZE or len(p.mean) != 3 or len(p.std) != 3 or not all(p.std):
        yield "preprocessing: resize, mean or std is unknown here"
    if p.source_size < 1 or not p.sizes or min(p.sizes) < 1:
        yield "preprocessing: sizes must be positive"


def _gate(m: Manifest) -> Iterator[str]:
    limits = m.gate.get("limits")
    if not isinstance(limits, dict) or not all(_number(limits.get(k)) for k in _LIMITS):
        yield f"gate.limits must hold {', '.join(_LIMITS)}"
    elif not 0 < limits["confidence"] < 1:
        yield "gate.limits.confidence must lie between 0 and 1"
    elif limits.get("min_sqnr_db") is not None and not _number(limits["min_sqnr_db"]):  # missing in older bundles
        yield "gate.limits.min_sqnr_db must be a number or null"
    if not isinstance(m.gate.get("split"), str):
        yield "gate.split must be a name"
    for where, key, value in (
        ("dataset", "name", m.dataset.get("name")),
        ("dataset", "sha256", m.dataset.get("sha256")),
        ("recipe", "sha256", m.recipe.get("sha256")),
    ):
        if not isinstance(value, str) or (key == "sha256" and not _SHA256.fullmatch(value)):
            yield f"{where}.{key} is missing"
    if "sha256" not in m.checkpoint:
        yield "checkpoint.sha256 is missing"


def _parity(m: Manifest) -> Iterator[str]:
    if m.parity is None:
        return
    reference, targets, names = m.parity.get("reference"), m.parity.get("targets"), {b.name for b in m.branches}
    if not isinstance(reference, dict) or not _number(reference.get("top1")) or not isinstance(targets, dict):
        yield "parity must hold reference.top1 and targets"
        return
    for target, found in targets.items():
        parts = [found.get("share"), found.get("branches")] if isinstance(found, dict) else [None]
        if not all(isinstance(p, dict) and set(p) == names for p in parts):
            yield f"parity.targets.{target} must hold share and branches for {', '.join(sorted(names))}"
        elif not _number(found.get("top1")) or not _number(found.get("agreement")):
            yield f"parity.targets.{target} must hold top1 and agreement"


_DISTANCE = frozenset({"sqnr_db", "agreement"})
_TRIAL = frozenset({"drop_pp", "drop_lower_pp", "drop_upper_pp", "agreement", "slowdown", "images_needed"})


def _precision(m: Manifest) -> Iterator[str]:
    for target, record in (m.precision or {}).items():
        if not isinstance(record, dict):
            yield f"precision.{target} must be an object"
            continue
        search, sensitivity = record.get("search"), record.get("sensitivity")
        if search is not None and not _is_search(search):
            yield f"precision.{target}.search must hold the list found and its trials"
        if sensitivity is not None and not _is_sensitivity(sensitivity):
            yield f"precision.{target}.sensitivity must hold branches with what was ranked"


def _bench(m: Manifest) -> Iterator[str]:
    least = (m.bench or {}).get("min_speedup_simple")
    if least is not None and not _number(least):
        yield "bench.min_speedup_simple must be a number or null"
    if not isinstance((m.bench or {}).get("int8_not_slower_than_fp32", False), bool):
        yield "bench.int8_not_slower_than_fp32 must be true or false"
    accuracy = (m.controls or {}).get("accuracy", [])
    if not isinstance(accuracy, list) or not all(
        _figures(a, ("top1", "images")) and isinstance(a.get("target"), str) and isinstance(a.get("precision"), str)
        for a in accuracy
    ):
        yield "controls.accuracy must be a list of target, precision, images and top1"


def _is_search(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("ended"), str)
        and _names(value.get("kept_by_recipe"))
        and _names(value.get("keep_float"))
        and isinstance(value.get("trials"), list)
        and all(
            _figures(t, _TRIAL) and _names(t.get("keep_float")) and {"verdict", "error"} <= set(t) for t in value["trials"]
        )
    )


def _is_sensitivity(value: Any) -> bool:
    branches = value.get("branches") if isinstance(value, dict) else None
    return isinstance(branches, dict) and all(
        isinstance(b, dict)
        and (b.get("together") is None or _figures(b["together"], _DISTANCE))
        and _names(b.get("not_measured"))
        and isinstance(b.get("ranked"), list)
        and all(_figures(row, _DISTANCE) and isinstance(row.get("name"), str) for row in b["ranked"])
        for b in branches.values()
    )


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _figures(value: Any, keys: Iterable[str]) -> bool:
    """Whether it is an object that holds a number or null under each of these keys."""
    return isinstance(value, dict) and all(k in value and (value[k] is None or _number(value[k])) for k in keys)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
