"""What was measured, a file a cell: kept under a digest of all that it depends on, so that a later run goes on from there.

Standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from athe_export.errors import EnvironmentFailure

_FORMAT = 1  # raised where the content of cells changes its meaning


@dataclass(frozen=True)
class Cell:
    """A measurement.

    Attributes:
        kind: answers or latency.
        key: sha256 of kind and `depends`.
        sha256: of its file.
        command: what has measured it.
        made: when, UTC.
        content: what was measured.
        reused: whether it was there before this run.
    """

    kind: str
    key: str
    sha256: str
    command: str
    made: str
    depends: Mapping[str, Any]
    content: Mapping[str, Any]
    file: str
    reused: bool

    def to_json(self) -> dict[str, Any]:
        names = ("kind", "key", "sha256", "command", "made", "file", "reused", "depends")
        return {name: getattr(self, name) for name in names}


class Cells:
    """The cells of an evaluation, in a folder.

    `used` are those that were asked for, in that order; `notes` name files that were there and could not be used.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command
        self.used: list[Cell] = []
        self.notes: list[str] = []

    def get(self, kind: str, depends: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Cell:
        """The cell of this kind that depends on exactly this, measured now where it is not there.

        Args:
            depends: JSON; everything that would change the outcome.
            measure: gives the content, JSON.

        Raises:
            EnvironmentFailure: it cannot be written.
        """
        depends = json.loads(_canonical(depends))
        key = hashlib.sha256(_canonical([_FORMAT, kind, depends]).encode()).hexdigest()
        path = self._folder / f"{kind}-{key[:16]}.json"
        cell = self._read(path, kind, key)
        if cell is None:
            content = json.loads(_canonical(measure()))
            self._write(path, kind, key, depends, content)
            cell = self._read(path, kind, key, reused=False)
            if cell is None:
                raise EnvironmentFailure("was written, and reads otherwise", where=str(path), remedy="check the disk")
        self.used.append(cell)
        return cell

    def _read(self, path: Path, kind: str, key: str, reused: bool = True) -> Cell | None:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            raise EnvironmentFailure(f"cannot be read: {err.strerror}", where=str(path)) from err
        try:
            found = json.loads(raw)
            whole = (found["kind"], found["key"]) == (kind, key) and found["content_sha256"] == _digest(found["content"])
            given = (found["command"], found["made"], found["depends"], found["content"])
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            self.notes.append(f"{path.name} was damaged, and is measured again")
            return None
        return Cell(kind, key, hashlib.sha256(raw).hexdigest(), *given, path.name, reused)

    def _write(self, path: Path, kind: str, key: str, depends: Any, content: Any) -> None:
        document = {
            "kind": kind,
            "key": key,
            "command": self._command,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "depends": depends,
            "content_sha256": _digest(content),
            "content": content,
        }
        replace_file(path, _canonical(document) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all, in place of an older one.

    Raises:
        EnvironmentFailure: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as err:
        remedy = "free space, or choose a folder that may be written with -o"
        raise EnvironmentFailure(f"cannot be written: {err.strerror}", where=str(path), remedy=remedy) from err


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
