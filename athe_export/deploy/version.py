"""What is deployed: a bundle's files and the runtime for them, and the names that both have on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athe_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.errors import BundleIntegrityError, UsageError
from athe_export.runtime.engines import TARGETS


@dataclass(frozen=True)
class Payload:
    """A bundle that is whole, the engine it is to run in there, and whether its reference travels."""

    bundle: Bundle
    target: str
    with_reference: bool

    @property
    def files(self) -> Mapping[str, Path]:
        """Path in the bundle -> file here, of all that travels."""
        optional = {f.path for f in self.bundle.manifest.files if f.optional}
        names = [MANIFEST, MANIFEST_DIGEST, *(f.path for f in self.bundle.manifest.files)]
        found = {name: self.bundle.path / name for name in names}
        return {n: p for n, p in found.items() if n not in optional or (self.with_reference and p.exists())}

    @property
    def digests(self) -> Mapping[str, str]:
        """Path in the bundle -> sha256, of all that travels."""
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files.items()}

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def graph_bytes(self) -> int:
        """Of the graphs that the engine can open."""
        return sum(g.bytes for g in self.bundle.manifest.graphs if g.target == self.target)

    def to_json(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        named = {"name": manifest.name, "digest": self.bundle.digest, "gate_at_build": manifest.verdict}
        return {"bundle": named, "target": self.target}

    def version(self, runtime: str) -> str:
        """The ID of this bundle with a runtime: other files or another runtime are another version."""
        optional = [f.path for f in self.bundle.manifest.files if f.optional and f.path in self.files]
        return f"{self.bundle.digest[:16]}{'-reference' if optional else ''}-{runtime}"


def payload(path: Path, target: str, with_reference: bool) -> Payload:
    """Opens and checks a bundle, and settles the engine: the one asked for, or of the bundle's the fastest, as `run` does.

    Raises:
        BundleIntegrityError: it is not whole, or a file's name cannot be sent.
        UsageError: it has no such target, or lacks the reference that was asked for.
    """
    bundle = open_bundle(path)
    bundle.check()
    for name in (f.path for f in bundle.manifest.files):
        if not name.isprintable():
            raise BundleIntegrityError(f"a file has a name that cannot be sent: {name!r}", where=str(path))
    present = bundle.manifest.targets
    known = [t for t in TARGETS if t in present]
    if (target != "auto" and target not in present) or not known:
        choices = ", ".join(present)
        raise UsageError(f"the bundle has no target {target!r}", where="--target", remedy=f"use auto, {choices}")
    reference = bundle.manifest.file_of("reference")
    if with_reference and (reference is None or not (path / reference.path).exists()):
        raise UsageError(
            "this copy of the bundle has no reference to send",
            where=str(path),
            remedy="leave out --with-reference, or deploy from where the bundle was built and gated",
        )
    return Payload(bundle, known[0] if target == "auto" else target, with_reference)


def runtime_key(python: Sequence[int], machine: str, extras: str, wheels: Sequence[Path], others: Sequence[Path]) -> str:
    """The key of a runtime: Python's minor version, processor, extras, and all files that it is installed from.

    Args:
        extras: athe-export's, as pip takes them: the engine, and what else is asked for.
        wheels: athe-export's alone where the device downloads the others, else all.
        others: a file of constraints, or nothing.
    """
    parts = [".".join(map(str, python[:2])), machine, extras, str(len(wheels))]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*wheels, *others)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
