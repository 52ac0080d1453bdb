"""Recipes that an evaluation makes from those given: the dense model, and smaller builds for --quick.

They are written as files, so that `athe-export build` repeats what was built.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from athe_export.evaluation.cells import replace_file
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.recipe import BranchSpec, RecipeFile, load_recipe
from athe_export.runtime.engines import TARGETS, unavailable

DENSE = "dense"


def is_dense(file: RecipeFile) -> bool:
    """Whether a recipe is the whole DeiT: one branch that drops neither tokens nor heads, and asks for nothing else."""
    recipe = file.recipe
    whole = BranchSpec(DENSE, recipe.model.heads)
    return (
        recipe.model.arch == "deit"
        and len(recipe.branches) == 1
        and dataclasses.replace(recipe.branches[0], name=DENSE, scorer=whole.scorer) == whole
    )


def is_trained(file: RecipeFile) -> bool:
    return file.recipe.checkpoint.random_seed is None


def dense_of(files: Sequence[RecipeFile], folder: Path) -> tuple[RecipeFile | None, bool]:
    """The dense model that all others are held against, and whether it was made here.

    It is the first trained dense recipe of those given. Where there is none, it is made of the first trained DeiT recipe:
    the same checkpoint with one branch that drops nothing. Without any trained one, untrained ones serve for speed alone;
    without any DeiT there is none.

    Args:
        folder: where a recipe that is made is written.
    """
    deit = [f for f in files if f.recipe.model.arch == "deit"]
    for trained in (True, False):
        for among in ([f for f in deit if is_dense(f)], deit):
            if found := next((f for f in among if is_trained(f) is trained), None):
                return (found, False) if is_dense(found) else (_dense_variant(found, folder), True)
    return None, False


def _dense_variant(file: RecipeFile, folder: Path) -> RecipeFile:
    content = _content(file)
    name = f"{file.recipe.name}_{DENSE}"
    content |= {"name": name, "branches": [{"name": DENSE, "heads": file.recipe.model.heads}]}
    for key in ("router", "bench", "train"):
        content.pop(key, None)
    for target in content["targets"].values():
        quantize = (target or {}).get("quantize") or {}
        if "keep_float" in quantize:  # a glob that matches nothing is refused
            quantize["keep_float"] = [g for g in quantize["keep_float"] if not g.startswith("router")]
    return _written(
        folder / f"{name}.yaml", content, f"the dense backbone of {file.path.name}: evaluate holds speed against it"
    )


def quick_variant(file: RecipeFile, plan: EvaluationPlan, folder: Path) -> RecipeFile:
    """The recipe with one target and one precision, few gate images and no search: what `--quick` builds where it has to."""
    content, recipe = _content(file), file.recipe
    gate = content["data"].setdefault("gate", {})
    gate["limit"] = min(recipe.data.gate.limit or plan.gate_images or 0, plan.gate_images or 0) or None
    target = quick_target(recipe.targets.names)
    spec = getattr(recipe.targets, target)
    precision = "int8" if "int8" in spec.precisions else spec.precisions[0]
    made = copy.deepcopy(content["targets"][target]) or {}
    made["precisions"] = [precision]
    quantize = made.setdefault("quantize", {})
    for key in ("sensitivity", "auto"):
        quantize.pop(key, None)
    if quantize.get("calibrator") in ("auto", "mse"):  # both search, an image or a histogram at a time
        quantize["calibrator"] = "min_max"
    if recipe.router is not None and plan.fit_images:
        content["router"]["fit_images"] = min(recipe.router.fit_images or plan.fit_images, plan.fit_images)
    content["targets"] = {target: made}
    content.get("parity", {}).pop("stability_draws", None)
    content.pop("bench", None)
    said = f"{file.path.name} as evaluate --quick builds it: {target} {precision} alone, {gate['limit']} gate images"
    return _written(folder / f"{recipe.name}.quick.yaml", content, said)


def quick_target(targets: Sequence[str]) -> str:
    """Of a recipe's targets the one that `run` would take here; the first where none can run."""
    usable = [t for t in TARGETS if t in targets and t not in unavailable(targets)]
    return (*usable, *targets)[0]


def _content(file: RecipeFile) -> dict[str, Any]:
    """The recipe's YAML with its paths made absolute, since it will lie in another folder."""
    content: dict[str, Any] = yaml.safe_load(file.text)
    for section, key in (("checkpoint", "path"), ("data", "calibration"), ("data", "path")):
        if path := content[section].get(key):
            content[section][key] = str(file.resolve(path))
    return content


def _written(path: Path, content: dict[str, Any], said: str) -> RecipeFile:
    replace_file(path, f"# {said}\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}")
    return load_recipe(path)
