"""The engines: what a session of each offers, and which of a bundle's targets is to run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import Manifest
from athe_export.errors import MissingDependency, UsageError
from athe_export.preprocessing import GraphInput
from athe_export.runtime.litert_session import LitertSession, litert_is_outdated, litert_unavailable
from athe_export.runtime.onnx_session import OnnxSession, onnxruntime_available


class Session(Protocol):
    """What every engine offers: one input, one output, fixed shapes."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def run(self, image: GraphInput) -> npt.NDArray[np.float32]: ...


# From a graph's content, and the number of threads if not 1, to its session; in `auto`'s order: the fastest first.
ENGINES: Mapping[str, Callable[..., Session]] = {"litert": LitertSession, "onnx": OnnxSession}
TARGETS = tuple(ENGINES)


def resolve_target(manifest: Manifest, target: str) -> tuple[str, Mapping[str, str]]:
    """The target to run: the one asked for, or of those in the bundle the fastest whose engine works here.

    Returns:
        The target, and those that would have come first with the reason why they cannot run.

    Raises:
        UsageError: the bundle has no such target.
        MissingDependency: its engine is not installed.
    """
    present = manifest.targets
    if target != "auto" and target not in present:
        raise UsageError(f"the bundle has no target {target!r}", where="--target", remedy="use " + ", ".join(present))
    wanted = tuple(sorted(present, key=_preference)) if target == "auto" else (target,)
    why = unavailable(wanted)
    for name in wanted:
        if name not in why:
            return name, {t: why[t] for t in wanted[: wanted.index(name)]}
    said = "; ".join(f"{name} cannot run: {why[name]}" for name in wanted)
    raise MissingDependency(said, where="this environment", remedy=remedy_for(wanted))


def remedy_for(targets: Iterable[str]) -> str:
    """The command that installs the engine of the first of these targets that `auto` would take."""
    known = sorted((t for t in targets if t in TARGETS), key=TARGETS.index)
    return f'pip install "athe-export[{known[0]}]"' if known else "install the athe-export that wrote the bundle"


def unavailable(targets: Iterable[str]) -> Mapping[str, str]:
    """Targets that cannot run here, with the reason."""
    found = {target: _reason(target) for target in targets}
    return {target: why for target, why in found.items() if why is not None}


def _reason(target: str) -> str | None:
    if target == "litert":
        return litert_unavailable()
    if target == "onnx":
        return None if onnxruntime_available() else "onnxruntime is not installed"
    return f"this athe-export has no runtime for {target}"


def _preference(target: str) -> int:
    if target == "litert" and litert_is_outdated():  # slower than ONNX Runtime, then
        return len(TARGETS)
    return TARGETS.index(target) if target in TARGETS else len(TARGETS)
