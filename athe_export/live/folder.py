"""A folder that images are put into. It is looked through several times a second, with the standard library alone.

An image is read as soon as two looks find it unchanged. One that cannot be read then may still be on its way: it is tried
again when it has changed, and a last time when it has not for a while. A file that changes later counts as a new one.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from athe_export.errors import EnvironmentFailure, UsageError
from athe_export.live.stream import Item

_LOOK_S = 0.1
_SETTLED_S = 2.0  # unchanged for so long: nobody writes to it any more
_State = tuple[int, int, int]  # inode, size, time of the last change


@dataclass
class _File:
    """What is known of a file: its state, since when, whether it was tried in it, and whether it is done with."""

    state: _State
    since: float
    tried: bool = False
    done: bool = False


@dataclass
class WatchedFolder:
    """Gives every file that comes into a folder, or changes there, once; hidden ones and folders are passed over.

    Attributes:
        path: the folder.
        there_before: files that were in it already, which are left alone.
    """

    path: Path
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    there_before: int = 0
    skipped: int = 0
    _files: dict[str, _File] = field(default_factory=dict)
    _ready: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: there is no such folder.
            EnvironmentFailure: it cannot be read.
        """
        if not self.path.is_dir():
            what = "is a file, not a folder" if self.path.exists() else "there is no such folder"
            raise UsageError(what, where=str(self.path), remedy="give a folder to --watch; mkdir makes one")
        for name, state in self._look().items():
            self._files[name] = _File(state, self.clock(), done=True)
        self.there_before = len(self._files)

    def next(self, wait_s: float) -> Item | None:
        """The next file that is ready, the oldest first."""
        end = self.clock() + wait_s
        while not self._ready:
            self._update()
            if self._ready or self.clock() >= end:
                break
            self.sleep(min(_LOOK_S, max(0.0, end - self.clock())))
        while self._ready:
            name = self._ready.popleft()
            file, path = self._files[name], self.path / name
            if _state(path) == file.state:  # else it has gone or changed since the look, and the next one finds out
                file.tried = file.done = True
                return Item(str(path), path)
        return None

    def refused(self, item: Item) -> bool:
        """Whether a file that could not be read is given up; else it comes again."""
        file = self._files.get(Path(item.name).name)
        if file is None or not Path(item.name).exists():
            return False
        file.done = _settled(file, self.clock())
        return file.done

    def close(self) -> None:
        """Nothing is held."""

    def _update(self) -> None:
        now, found = self.clock(), self._look()
        for name in [n for n in self._files if n not in found]:
            del self._files[name]
        ready = []
        for name, state in found.items():
            known = self._files.get(name)
            if known is None or known.state != state:
                self._files[name] = _File(state, now)
            elif not known.done and (not known.tried or _settled(known, now)):
                ready.append((state[2], name))
        self._ready.extend(name for _, name in sorted(ready))

    def _look(self) -> dict[str, _State]:
        found = {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and (state := _state(Path(entry.path))):
                        found[entry.name] = state
        except OSError as err:
            raise EnvironmentFailure(
                f"the watched folder cannot be read: {err.strerror}",
                where=str(self.path),
                remedy="put it back, and start again",
            ) from err
        return found


def _settled(file: _File, now: float) -> bool:
    return now - file.since >= _SETTLED_S


def _state(path: Path) -> _State | None:
    """Of a file; None of a folder, and of what has gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
