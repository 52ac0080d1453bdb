"""What single keys of a recipe cannot show: contradictions between them. `load_recipe` reports all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from athe_export.recipe import Recipe

_Found = Iterator[tuple[tuple[str | int, ...], str]]
_Sound = Callable[..., bool]  # whether the value at a path could be read


def contradictions(recipe: Recipe, sound: _Sound) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong between keys, as far as the keys themselves could be read."""
    return [problem for check in _CHECKS for problem in check(recipe, sound)]


def _check_model(r: Recipe, sound: _Sound) -> _Found:
    m = r.model
    if sound("model", "image_size") and sound("model", "patch") and m.image_size % m.patch:
        yield ("model", "patch"), f"{m.patch} does not divide image_size {m.image_size}"
    if sound("model", "dim") and sound("model", "heads") and m.dim % m.heads:
        yield ("model", "heads"), f"{m.heads} does not divide dim {m.dim}"


def _check_biformer(r: Recipe, sound: _Sound) -> _Found:
    m = r.model
    if not sound("model"):
        return
    if (m.arch == "biformer") != (m.biformer is not None):
        yield ("model", "biformer"), "is needed with arch: biformer, and only there"
        return
    if m.biformer is None:
        return
    own, where = m.biformer, ("model", "biformer")
    if m.patch != 4:
        yield ("model", "patch"), f"{m.patch} must be 4, which two convolutions of a biformer make of an image"
    if m.depth != sum(own.depths):
        yield ("model", "depth"), f"{m.depth} is not the sum of biformer.depths, {sum(own.depths)}"
    if len(own.top_k) != len(own.depths):
        yield (*where, "top_k"), f"must have an entry for each of the {len(own.depths)} stages"
    for i, k in enumerate(own.top_k):
        if k > own.regions**2:
            yield (*where, "top_k", i), f"{k} is more than the {own.regions**2} regions that there are"
    if text := _unfit(m.image_size, r):
        yield ("model", "image_size"), text
    if r.equalise is not None:
        yield ("equalise",), "is for arch: deit"
    for i, branch in enumerate(r.branches or () if sound("branches") else ()):
        if i or branch.prune or branch.heads != m.heads:
            yield ("branches", i), f"a biformer is one branch that drops nothing: {{name: …, heads: {m.heads}}}"


def _unfit(size: int, r: Recipe) -> str | None:
    """Why images of that size cannot be cut into a biformer's regions in every stage; None where they can."""
    assert r.model.biformer is not None
    step = 4 * 2 ** (len(r.model.biformer.depths) - 1) * r.model.biformer.regions
    return None if size % step == 0 else f"{size} is no multiple of {step}, so the last stage's map has no such regions"


def _check_checkpoint(r: Recipe, sound: _Sound) -> _Found:
    c = r.checkpoint
    if not sound("checkpoint"):
        return
    if (c.path is None) == (c.random_seed is None):
        yield ("checkpoint",), "must hold either path or random_seed"
    if c.path is None and c.sha256 is not None:
        yield ("checkpoint", "sha256"), "belongs to a path"
    if c.path is None and c.shared:
        yield ("checkpoint", "shared"), "belongs to a path"
    if c.structured is not None and c.path is None:
        yield ("checkpoint", "structured"), "belongs to a path"
    if c.structured is not None and sound("model") and r.model.arch != "deit":
        yield ("checkpoint", "structured"), "prunes a deit, and model.arch is another"


def _check_data(r: Recipe, sound: _Sound) -> _Found:
    if sound("data", "dataset") and sound("data", "path") and (r.data.dataset == "folder") != (r.data.path is not None):
        yield ("data", "path"), "is needed with dataset: folder, and only there"
    if sound("data", "preprocessing", "std"):
        for i, std in enumerate(r.data.preprocessing.std):
            if std <= 0:
                yield ("data", "preprocessing", "std", i), f"{std} is too small; it must be above 0"


_RESERVED = {"router": "is the router's role", "auto": "means the router's choice"}


def _check_branches(r: Recipe, sound: _Sound) -> _Found:
    if r.branches == ():
        yield ("branches",), "at least one branch is needed"
    seen: set[str] = set()
    for i, branch in enumerate(r.branches or ()):
        if not sound("branches", i, "name"):
            continue
        if branch.name in seen or branch.name in _RESERVED:
            what = _RESERVED.get(branch.name, "names two branches")
            yield ("branches", i, "name"), f"{branch.name!r} {what}; choose another"
        seen.add(branch.name)


def _check_branch_fit(r: Recipe, sound: _Sound) -> _Found:
    m = r.model
    if not sound("model"):
        return
    for i, branch in enumerate(r.branches or ()):
        if not sound("branches", i):
            continue
        if branch.heads > m.heads:
            yield ("branches", i, "heads"), f"{branch.heads} heads are more than the model's {m.heads}"
        before = 0
        for j, (stage, (_, kept)) in enumerate(zip(branch.prune, branch.kept_tokens(m.patches), strict=True)):
            where = ("branches", i, "prune", j)
            if not before < stage.after_blocks < m.depth:
                yield (*where, "after_blocks"), f"{stage.after_blocks} must be above {before} and below depth {m.depth}"
            if kept < 1:
                yield (*where, "keep"), f"{stage.keep} of {m.patches} patch tokens leaves no token"
            before = stage.after_blocks


def _check_router(r: Recipe, sound: _Sound) -> _Found:
    if r.branches is None or not sound("router"):
        return
    if len(r.branches) > 1 and r.router is None:
        yield ("router",), f"{len(r.branches)} branches need a router"
    if len(r.branches) == 1 and r.router is not None:
        yield ("router",), "a single branch has nothing to route; remove it or add a branch"


def _check_threshold(r: Recipe, sound: _Sound) -> _Found:
    if r.router is None or r.branches is None or not sound("router", "threshold"):
        return
    t, where = r.router.threshold, ("router", "threshold")
    if sum(x is not None for x in (t.fixed, t.max_drop_pp, t.share_simple)) != 1:
        yield where, "must be a number, {max_drop_pp: …} or {share_simple: …}, one of them"
    elif t.fixed is not None and len(r.branches) > 1:
        if len(t.fixed) != len(r.branches) - 1:
            yield where, f"{len(r.branches)} branches need {len(r.branches) - 1} bounds, not {len(t.fixed)}"
        if list(t.fixed) != sorted(t.fixed):
            yield where, "bounds must ascend"


def _check_targets(r: Recipe, sound: _Sound) -> _Found:
    if not sound("targets"):
        return
    if not r.targets.names:
        yield ("targets",), "names no target; add onnx, litert or both"
    for name in r.targets.names:
        precisions = getattr(r.targets, name).precisions
        if not precisions or len(set(precisions)) != len(precisions):
            yield ("targets", name, "precisions"), "must name int8, fp32 or both, each once"


def _check_calibrators(r: Recipe, sound: _Sound) -> _Found:
    if not sound("targets") or not sound("data", "gate"):
        return
    held_out = r.data.gate.split == "holdout"
    text = "measures on the held-out images, which data.gate.split says the gate is run on"
    for name in r.targets.names:
        spec, where = getattr(r.targets, name).quantize, ("targets", name, "quantize", "calibrator")
        if getattr(spec, "dynamic", ()) and spec.scheme != "static_wi8_ai8":
            yield (*where[:-1], "dynamic"), f"names layers of static_wi8_ai8; in {spec.scheme} all are"
        if spec.calibrator != "auto":
            continue
        if spec.scheme != "static_wi8_ai8":
            yield where, f"auto compares ranges of static_wi8_ai8; {spec.scheme} has none to compare"
        if held_out:
            yield where, f"auto {text}"
    if sound("parity") and r.parity.stability_draws and held_out:
        yield ("parity", "stability_draws"), text


def _check_precision(r: Recipe, sound: _Sound) -> _Found:
    if not sound("targets"):
        return
    for name in r.targets.names:
        target, where = getattr(r.targets, name), ("targets", name, "quantize")
        asked = [key for key in ("sensitivity", "auto") if getattr(target.quantize, key) is not None]
        for key in asked:
            if "int8" not in target.precisions:
                yield (*where, key), f"is about int8 graphs, and targets.{name}.precisions asks for none"
            if sound("data", "gate") and r.data.gate.split == "holdout":
                yield (*where, key), "measures on the held-out images, which data.gate.split says the gate is run on"
        if "auto" in asked and sound("parity"):
            drop, gate = target.quantize.auto.max_top1_drop_pp, r.parity.max_top1_drop_pp
            if drop > gate:
                text = f"{drop} is more than parity.max_top1_drop_pp {gate}: the gate would refuse what the search accepts"
                yield (*where, "auto", "max_top1_drop_pp"), text


def _check_train(r: Recipe, sound: _Sound) -> _Found:
    if r.train is None or not sound("train"):
        return
    t = r.train
    if not (t.dense or t.adaptive or t.router):
        yield ("train",), "holds no phase"
    if sound("data", "preprocessing", "source_size") and t.crop_padding >= r.data.preprocessing.source_size:
        size = r.data.preprocessing.source_size
        yield ("train", "crop_padding"), f"{t.crop_padding} pixels cannot be reflected; it must be below source_size {size}"
    if t.router and sound("router") and r.router is None:
        yield ("train", "router"), "there is no router to train"
    if t.router and t.dense and not t.adaptive:  # with neither, the branches are those of --init
        yield ("train", "adaptive"), "at least one phase is needed before the router's: it fits the branches"
    if t.images is not None and t.router_images >= t.images:
        yield ("train", "router_images"), f"{t.router_images} of {t.images} images leaves none for the branches"
    for i, branch in enumerate(r.branches or () if sound("branches") else ()):
        if branch.name in ("dense", "routed", "oracle", "random"):
            yield ("branches", i, "name"), f"{branch.name!r} is another path's name in what training reports; choose another"
    yield from _check_phases(r, sound)


def _check_phases(r: Recipe, sound: _Sound) -> _Found:
    t = r.train
    assert t is not None
    for kind in ("dense", "adaptive"):
        for i, phase in enumerate(getattr(t, kind) or ()):
            where, size = ("train", kind, i), phase.image_size
            if phase.batch_size % t.repeated_augmentation:
                yield (*where, "batch_size"), f"{phase.batch_size} is no multiple of repeated_augmentation"
            if not sound("model") or not sound("train", kind, i):
                continue
            if r.model.biformer is not None:
                yield from _check_biformer_phase(r, kind, i)
                continue
            if size is not None and size % r.model.patch:
                yield (*where, "image_size"), f"model.patch {r.model.patch} does not divide {size}"
            elif kind == "adaptive" and sound("branches"):
                patches = phase.patches_seen(r.model.image_size, r.model.patch)
                for name in (b.name for b in r.branches if any(k < 1 for _, k in b.kept_tokens(patches))):
                    yield where, f"branch {name} keeps no token: this phase sees too few patches ({patches})"
    if t.adaptive and sound("model", "image_size") and sound("train", "adaptive", len(t.adaptive) - 1):
        last, where = t.adaptive[-1], ("train", "adaptive", len(t.adaptive) - 1)
        if last.image_size not in (None, r.model.image_size):
            text = f"{last.image_size} is not the model's {r.model.image_size}, which the last of these phases must have"
            yield (*where, "image_size"), text
        if last.patch_keep < 1:
            yield (*where, "patch_keep"), f"{last.patch_keep} must be 1: the last of these phases sees every patch"
    for kind in ("dense", "router_features", "router"):
        for i, phase in enumerate(getattr(t, kind) or ()):
            if sound("train", kind, i) and phase.all_paths < 1:
                yield ("train", kind, i, "all_paths"), "has no use here: only adaptive phases train several paths"
    if t.router_features and not t.router:
        yield ("train", "router_features"), "leads nowhere without train.router phases"
    for kind in ("router_features", "router"):
        for i, phase in enumerate(getattr(t, kind) or ()):
            if not sound("train", kind, i):
                continue
            if kind == "router" and phase.image_size is not None:
                yield ("train", kind, i, "image_size"), "has no use here: the router trains at router.image_size"
            if phase.patch_keep < 1:
                yield ("train", kind, i, "patch_keep"), "has no use here: the router has no patches"


def _check_biformer_phase(r: Recipe, kind: str, i: int) -> _Found:
    assert r.train is not None
    phase, where = getattr(r.train, kind)[i], ("train", kind, i)
    if kind == "adaptive":
        yield where, "has no use here: a biformer has no branches to fit jointly, only train.dense phases"
    elif phase.patch_keep < 1:
        yield (*where, "patch_keep"), "has no use here: a biformer's regions need every patch"
    elif text := _unfit(phase.image_size or r.model.image_size, r):
        yield (*where, "image_size"), text


_CHECKS = (
    _check_model,
    _check_biformer,
    _check_checkpoint,
    _check_data,
    _check_branches,
    _check_branch_fit,
    _check_router,
    _check_threshold,
    _check_targets,
    _check_calibrators,
    _check_precision,
    _check_train,
)
