"""What `tune` has found fastest on this machine, remembered in the user's cache. Standard library and platformdirs alone.

One small file a bundle and processor. It holds for that manifest to the byte, and for that processor with as many CPUs; a
bundle that was built again, or was copied to another board, is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athe_export.bench.machine import Processor, processor
from athe_export.bundle.reader import Bundle
from athe_export.errors import EnvironmentFailure, MissingDependency

_FIELDS = {"target": str, "precision": str, "threads": int, "name": str, "bundle": str, "processor": str}


@dataclass(frozen=True)
class Choice:
    """Target, precision and threads, of the bundle `name` with this digest on this processor (`Processor.key`)."""

    target: str
    precision: str
    threads: int
    name: str
    bundle: str
    processor: str

    @property
    def said(self) -> str:
        count = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        return f"{self.target} {self.precision} with {count}"


def remember(choice: Choice) -> Path:
    """Writes the choice, whole or not at all, in place of an older one.

    Raises:
        MissingDependency: without platformdirs there is no user cache.
        EnvironmentFailure: it cannot be written.
    """
    path = _path(choice.bundle, choice.processor)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(vars(choice), indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as err:
        raise EnvironmentFailure(
            f"what was found fastest cannot be remembered: {err.strerror}",
            where=str(path),
            remedy="free space, or set XDG_CACHE_HOME to a folder that may be written; run's --target, --precision and "
            "--threads take the same choice by hand",
        ) from err
    return path


def recall(bundle: Bundle, here: Processor | None = None) -> tuple[Choice | None, str | None]:
    """What was remembered of a bundle on this processor, and a note where something is there that cannot be read."""
    digest = bundle.digest
    try:
        path = _path(digest, (here or processor()).key)
    except MissingDependency:
        return None, None
    if not path.exists():
        return None, None
    choice = _read(path)
    if choice is None or choice.bundle != digest:
        return None, f"what tune has remembered cannot be read: {path}; run athe-export tune again"
    return choice, None


def all_remembered() -> tuple[Choice, ...]:
    """Every choice in the cache, of whatever bundle and processor."""
    try:
        folder = _folder()
    except MissingDependency:
        return ()
    return tuple(c for c in map(_read, sorted(folder.glob("*.json"))) if c is not None) if folder.is_dir() else ()


def _read(path: Path) -> Choice | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values = {name: content[name] for name in _FIELDS}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = all(type(values[name]) is kind for name, kind in _FIELDS.items()) and values["threads"] >= 1
    return Choice(**values) if sound else None


def _path(bundle: str, processor_key: str) -> Path:
    return _folder() / f"{hashlib.sha256(f'{bundle} {processor_key}'.encode()).hexdigest()[:32]}.json"


def _folder() -> Path:
    try:
        from platformdirs import user_cache_path
    except ImportError:
        raise MissingDependency(
            "platformdirs is not installed, so there is no user cache to remember in",
            remedy="pip install platformdirs, or give run the choice by hand: --target, --precision, --threads",
        ) from None
    return user_cache_path("athe-export") / "tuned"


def tuned_here() -> list[dict[str, Any]]:
    """Every choice in the cache as JSON, and whether it is this machine's (`here`)."""
    key = processor().key
    return [vars(choice) | {"here": choice.processor == key} for choice in all_remembered()]
