"""What a build would do, from the recipe alone: nothing is written, downloaded or traced."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from athe_export.data.calibration import read_calibration_set
from athe_export.errors import CheckpointError
from athe_export.recipe import LitertTarget, OnnxTarget, Recipe, RecipeFile


def plan_build(
    file: RecipeFile, output: Path, data_root: Path | None, checkpoint: Path | None, controls: bool = False
) -> dict[str, Any]:
    """The plan as JSON.

    Raises:
        CheckpointError, CalibrationError: a file that the build needs is missing or malformed.
    """
    recipe = file.recipe
    weights = checkpoint or (file.resolve(recipe.checkpoint.path) if recipe.checkpoint.path else None)
    if weights is not None and not weights.is_file():
        raise CheckpointError(
            "there is no such checkpoint",
            where=str(weights),
            remedy="correct checkpoint.path in the recipe, pass --checkpoint, or train it: athe-export train RECIPE",
        )
    calibration = read_calibration_set(file.resolve(recipe.data.calibration))
    gated = weights is not None
    return {
        "name": recipe.name,
        "recipe": str(file.path),
        "output": str(output),
        "controls": str(output.with_name(f"{output.name}.controls")) if controls else None,
        "replaces_a_bundle": (output / "manifest.json").exists(),
        "checkpoint": str(weights) if weights else f"random weights of seed {recipe.checkpoint.random_seed}",
        "gated": gated,
        "dataset": recipe.data.dataset,
        "data_root": str(data_root) if data_root else None,
        "calibration_images": len(calibration.ids),
        "gate": {"split": recipe.data.gate.split, "limit": recipe.data.gate.limit},
        "branches": [
            {
                "name": b.name,
                "tokens": [k for _, k in b.kept_tokens(recipe.model.patches)] or [recipe.model.patches],
                "of": recipe.model.patches,
                "heads": b.heads,
            }
            for b in recipe.branches
        ],
        "targets": {name: _target(getattr(recipe.targets, name)) for name in recipe.targets.names},
        "stages": _stages(recipe, gated) + (_control_stages(recipe, gated) if controls else []),
    }


def _stages(recipe: Recipe, gated: bool) -> list[str]:
    """Their names, in order, as a build says them."""
    roles = [*(["router"] if recipe.router else []), *(b.name for b in recipe.branches)]
    stages = ["data", "checkpoint", "routing", *(["equalise"] if recipe.equalise else [])]
    for target in recipe.targets.names:
        spec = getattr(recipe.targets, target)
        quantized = [
            r for r in roles if "int8" in spec.precisions and not (r == "router" and _router_stays_float(target, spec))
        ]
        stages += [f"{target}: export {role}" for role in roles]
        stages += [f"{target}: calibrator"] if quantized and spec.quantize.calibrator == "auto" else []
        stages += [f"{target}: sensitivity"] if quantized and spec.quantize.sensitivity is not None else []
        stages += [f"{target}: search"] if quantized and spec.quantize.auto is not None else []
        stages += [f"{target}: quantize {role}" for role in quantized]
        stages.append(f"{target}: write")
    return [*stages, "golden", *(["reference", "parity"] if gated else []), "verify"]


def _control_stages(recipe: Recipe, gated: bool) -> list[str]:
    """What `--controls` adds: the dense backbone, and the int8 branches that a bundle of fp32 alone lacks."""
    branches, stages = [b.name for b in recipe.branches], []
    for target in recipe.targets.names:
        precisions = getattr(recipe.targets, target).precisions
        stages += [f"controls: {target}: quantize {name}" for name in branches if "int8" not in precisions]
        if "dense" not in branches:
            stages += [f"controls: {target}: export dense", f"controls: {target}: quantize dense"]
    return [
        *stages,
        "controls: write",
        "controls: golden",
        *(["controls: accuracy of the dense backbone"] if gated else []),
        "controls: verify",
    ]


def _router_stays_float(target: str, spec: OnnxTarget | LitertTarget) -> bool:
    """Whether the build will quantize nothing of it; without torch its layers are known by their ends alone."""
    ends = ("router.features.0.0", "router.features.26.0", "router.classifier")
    globs = spec.quantize.keep_float
    return target == "onnx" or all(any(fnmatch.fnmatchcase(layer, g) for g in globs) for layer in ends)


def _target(spec: OnnxTarget | LitertTarget) -> dict[str, Any]:
    opset = {"opset": spec.opset} if isinstance(spec, OnnxTarget) else {}
    return opset | {"precisions": list(spec.precisions), "scheme": spec.quantize.scheme}
