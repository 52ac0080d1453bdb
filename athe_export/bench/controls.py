"""The controls beside a bundle: what its graphs are held against, in a bundle of its own at `<bundle>.controls`.

`build --controls` writes it. It holds the router, every branch and the dense backbone, each in both precisions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from athe_export.bundle.reader import Bundle, open_bundle

DENSE = "dense"
_BUILD = "build the bundle with --controls, and copy both folders"


def controls_path(bundle: Path) -> Path:
    """Where the controls of a bundle are."""
    whole = bundle.resolve()
    return whole.with_name(f"{whole.name}.controls")


def find_controls(bundle: Bundle) -> tuple[Bundle | None, str]:
    """The controls beside a bundle, checked file by file; None with the reason where there are none that belong to it.

    Raises:
        BundleIntegrityError: they are there and not whole.
    """
    path = controls_path(bundle.path)
    if not path.is_dir():
        return None, f"there are no controls at {path.name}: {_BUILD}"
    found = open_bundle(path)
    found.check()
    if not _belong(bundle, found):
        return None, f"the controls at {path.name} are of another build: {_BUILD}"
    return found, ""


def _belong(bundle: Bundle, controls: Bundle) -> bool:
    """Whether both are of one build: made by one recipe from one checkpoint, and equal in every graph that both hold."""
    ours, theirs = bundle.manifest, controls.manifest
    own = {(g.target, g.role, g.precision): g.whole_sha256 for g in ours.graphs}
    other = {(g.target, g.role, g.precision): g.whole_sha256 for g in theirs.graphs}
    same = (ours.recipe["sha256"], ours.checkpoint["sha256"]) == (theirs.recipe["sha256"], theirs.checkpoint["sha256"])
    has_dense = any(b.name == DENSE for b in theirs.branches)
    return same and has_dense and all(other.get(graph) == digest for graph, digest in own.items())


def dense_accuracy(controls: Bundle | None, target: str, precision: str) -> float | None:
    """Top-1 of the dense control on the gate's images; None where it was not measured."""
    measured: list[dict[str, Any]] = ((controls.manifest.controls if controls else None) or {}).get("accuracy", [])
    return next((a["top1"] for a in measured if (a["target"], a["precision"]) == (target, precision)), None)
