"""What `run` takes where nothing is asked for: what `tune` has found fastest here, else the usual order."""

from __future__ import annotations

from pathlib import Path

from athe_export.bench.tuned import recall
from athe_export.bundle.reader import open_bundle
from athe_export.runtime.engines import unavailable
from athe_export.runtime.predictor import Predictor


def fastest_predictor(path: Path, target: str, precision: str, threads: int | None) -> tuple[Predictor, str | None]:
    """The bundle opened as asked for, and a remark on what was remembered; a target or a precision that is named overrides
    all of it but the threads that are named too.

    Raises:
        BundleIntegrityError, MissingDependency, UsageError.
    """
    bundle = open_bundle(path)
    if (target, precision) != ("auto", "auto"):
        return Predictor(bundle, target, precision, threads or 1), None
    choice, remark = recall(bundle)
    if choice is None:
        return Predictor(bundle, threads=threads or 1), remark
    why = unavailable([choice.target]).get(choice.target)
    if (choice.target, choice.precision) not in bundle.manifest.systems:
        why = "the bundle has no such graphs"
    if why:
        return Predictor(
            bundle, threads=threads or 1
        ), f"tune had found {choice.said} fastest, which cannot run here now: {why}"
    predictor = Predictor(bundle, choice.target, choice.precision, threads or choice.threads)
    return predictor, f"{choice.said}: what athe-export tune has found fastest here"
