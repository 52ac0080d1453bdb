"""From recipes to bundles: one that is there and fits is taken, else it is built and gated like any other."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athe_export import __version__
from athe_export.bundle.manifest import MANIFEST, Manifest
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.data.calibration import read_calibration_set
from athe_export.errors import BundleIntegrityError, EnvironmentFailure, GateFailed, GateInconclusive
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.evaluation.variants import is_dense, is_trained, quick_variant
from athe_export.parity.reference import Reference, read_reference
from athe_export.recipe import RecipeFile

_MISSED = "missed"  # ending of a folder whose bundle did not pass its gate
Build = Callable[[RecipeFile, Path], None]


@dataclass(frozen=True)
class RecipeBundle:
    """A recipe's bundle.

    Attributes:
        file: the recipe as given, or as it was made from one (`made`).
        built_from: the recipe that the bundle holds: `file`, or its quick variant.
        reused: whether the bundle was there.
    """

    file: RecipeFile
    built_from: RecipeFile
    bundle: Bundle
    reused: bool
    made: bool = False

    @property
    def name(self) -> str:
        return self.file.recipe.name

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def trained(self) -> bool:
        return is_trained(self.file)

    @property
    def dense(self) -> bool:
        return is_dense(self.file)

    @property
    def command(self) -> str:
        """What builds the same bundle; one that misses its gate is left in the staging folder that the build then names."""
        output = self.bundle.path.with_name(self.bundle.path.name.removesuffix(f".{_MISSED}"))
        return shlex.join(["athe-export", "build", str(self.built_from.path), "-o", str(output)])

    def reference(self) -> Reference | None:
        """What the fp32 model answered on the gate's images; None of untrained weights and where it was left out.

        Raises:
            BundleIntegrityError: the file is not what the manifest says.
        """
        entry = self.manifest.file_of("reference")
        if entry is None or not (self.bundle.path / entry.path).exists():
            return None
        return read_reference(self.bundle.read(entry.path), entry.path)

    def to_json(self) -> dict[str, Any]:
        parity = self.manifest.parity or {}
        return {
            "name": self.name,
            "recipe": str(self.file.path),
            "made_by_evaluate": self.made,
            "built_from": str(self.built_from.path),
            "recipe_sha256": self.manifest.recipe["sha256"],
            "checkpoint_sha256": self.manifest.checkpoint["sha256"],
            "trained": self.trained,
            "dense": self.dense,
            "router": self.manifest.router is not None,
            "branches": [b.name for b in self.manifest.branches],
            "bundle": str(self.bundle.path),
            "bundle_digest": self.bundle.digest,
            "reused": self.reused,
            "command": self.command,
            "verdict": self.manifest.verdict,
            "gate_images": parity.get("images"),
            "reference_top1": (parity.get("reference") or {}).get("top1"),
            "notes": list(self.manifest.notes),
        }


def obtain(file: RecipeFile, plan: EvaluationPlan, output: Path, search: tuple[Path, ...], build: Build) -> RecipeBundle:
    """The bundle of a recipe, checked file by file.

    A bundle that missed its gate is taken too, from a folder of its own: its verdict stands beside every figure.

    Args:
        output: the evaluation's folder; bundles that are built go below it.
        search: folders of bundles by recipe name, where one may be already.
        build: builds, gates and promotes a recipe.

    Raises:
        AtheExportError: it cannot be built.
    """
    own = output / "bundles" / file.recipe.name
    places = [folder / file.recipe.name for folder in search] + [own, _missed(own)]
    if found := _fitting(places, file):
        return RecipeBundle(file, file, found, reused=True)
    wanted = quick_variant(file, plan, output / "recipes") if plan.gate_images else file
    if found := _fitting([own, _missed(own)], wanted):
        return RecipeBundle(file, wanted, found, reused=True)
    return RecipeBundle(file, wanted, _built(wanted, own, build), reused=False)


def _built(file: RecipeFile, output: Path, build: Build) -> Bundle:
    try:
        build(file, output)
    except (GateFailed, GateInconclusive) as missed:
        staged = Path(missed.where or "")
        if not (staged / MANIFEST).is_file():
            raise
        output = _missed(output)
        try:
            shutil.rmtree(output, ignore_errors=True)
            staged.rename(output)
        except OSError as err:
            raise EnvironmentFailure(f"cannot be put in place: {err.strerror}", where=str(staged)) from err
    bundle = open_bundle(output)
    bundle.check()
    return bundle


def _missed(output: Path) -> Path:
    return output.with_name(f"{output.name}.{_MISSED}")


def _fitting(places: list[Path], file: RecipeFile) -> Bundle | None:
    """The first bundle of these that the recipe would give again: the same recipe, weights and calibration images."""
    for place in places:
        try:
            bundle = open_bundle(place)
            if _made_of(bundle.manifest) == _asked_of(file):
                bundle.check()
                return bundle
        except BundleIntegrityError:
            continue  # none there, or damaged: it is built
    return None


def _made_of(manifest: Manifest) -> Mapping[str, Any]:
    return {
        "recipe": manifest.recipe["sha256"],
        "checkpoint": manifest.checkpoint["sha256"],
        "calibration": manifest.calibration["ids_sha256"],
        "athe-export": manifest.tools.get("athe-export"),
    }


def _asked_of(file: RecipeFile) -> Mapping[str, Any]:
    path = file.recipe.checkpoint.path
    return {
        "recipe": file.sha256,
        "checkpoint": hashlib.sha256(file.resolve(path).read_bytes()).hexdigest() if path else None,
        "calibration": read_calibration_set(file.resolve(file.recipe.data.calibration)).ids_sha256,
        "athe-export": __version__,
    }
