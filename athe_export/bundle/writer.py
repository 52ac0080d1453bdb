"""Writing a bundle: into a staging folder beside the output, then one atomic exchange.

Until the exchange the previous bundle is untouched, whatever happens: an error, a kill, a full disk. One build at a
time may write an output; the lock is the kernel's, so a killed build leaves none behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from athe_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST, FileEntry, Manifest
from athe_export.errors import EnvironmentFailure

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class StagedBundle:
    """A bundle being written; nothing of it is at `output` until `promote`."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f".{output.name}.staging")
        self._files: list[FileEntry] = []
        self._kept = False

    def add(self, name: str, role: str, content: bytes, optional: bool = False) -> FileEntry:
        """Writes one file and records it for the manifest."""
        path = self.folder / name
        with said_plainly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
        entry = FileEntry(name, role, len(content), hashlib.sha256(content).hexdigest(), optional)
        self._files.append(entry)
        return entry

    def finish(self, manifest: Manifest) -> Manifest:
        """Writes the manifest and its digest; may be called again with a fuller manifest."""
        complete = manifest._replace(files=tuple(self._files))
        text = complete.to_text()
        with said_plainly(self.folder):
            _write(self.folder / MANIFEST, text.encode())
            digest = hashlib.sha256(text.encode()).hexdigest()
            _write(self.folder / MANIFEST_DIGEST, f"{digest}  {MANIFEST}\n".encode())
        return complete

    def keep(self) -> None:
        """Leaves the staging folder where it is, for a person to look at."""
        self._kept = True

    def discard(self) -> None:
        """Removes the staging folder unless it is to be kept."""
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def promote(self) -> None:
        """Puts the staged folder in the output's place and removes what was there.

        What cannot be removed stays in the staging folder, which the next build clears: the new bundle is in place.
        """
        with said_plainly(self.output):
            if not self.output.exists():
                os.rename(self.folder, self.output)
                return
            _exchange(self.folder, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def staged_bundle(output: Path) -> Iterator[StagedBundle]:
    """Locks `output` and gives an empty staging folder; leftovers of a killed build are removed first.

    Raises:
        EnvironmentFailure: another build is writing it, or the place cannot be written.
    """
    with said_plainly(output):
        output = output.resolve()  # a link to a bundle stays one: what it leads to is exchanged
        output.parent.mkdir(parents=True, exist_ok=True)
        _require_replaceable(output)
        lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise EnvironmentFailure(
                "another build is writing this output now",
                where=str(output),
                remedy="wait for it to end, or choose another output with -o",
            ) from None
    try:
        staged = StagedBundle(output)
        with said_plainly(staged.folder):
            if _previous(output).exists():  # a kill between two renames of `_exchange`
                if output.exists():
                    shutil.rmtree(_previous(output))
                else:
                    os.rename(_previous(output), output)
            if staged.folder.exists():
                shutil.rmtree(staged.folder)
            staged.folder.mkdir()
        try:
            yield staged
        finally:
            staged.discard()
    finally:
        lock.release()


def _require_replaceable(output: Path) -> None:
    """Raises EnvironmentFailure where something stands that no build wrote."""
    foreign = output.is_dir() and any(output.iterdir()) and not _is_bundle(output)
    if output == output.parent or output.is_file() or foreign:
        raise EnvironmentFailure(
            "the output exists and is not a bundle; it is left alone",
            where=str(output),
            remedy="choose another output with -o, or remove it yourself",
        )


def _is_bundle(folder: Path) -> bool:
    """Whether a build wrote the folder: a bundle of any version, or a damaged one that still has its digest."""
    try:
        digest = (folder / MANIFEST_DIGEST).read_text()
    except (OSError, UnicodeDecodeError):
        return False  # many things have a manifest.json, a web app for one
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return digest.split()[1:] == [MANIFEST]
    return isinstance(content, dict) and type(content.get("schema_version")) is int


@contextlib.contextmanager
def said_plainly(where: Path) -> Iterator[None]:
    """Turns an OSError into one message with what to do.

    Raises:
        EnvironmentFailure: disk full, no permission, read-only or otherwise unwritable.
    """
    try:
        yield
    except OSError as err:
        remedies = {
            errno.ENOSPC: "free some space or choose another disk with -o",
            errno.EDQUOT: "free some of your quota or choose another disk with -o",
            errno.EFBIG: "raise the file size limit (ulimit -f) or choose another place with -o",
            errno.EACCES: "choose a folder you may write with -o",
            errno.EPERM: "choose a folder you may write with -o",
            errno.EROFS: "choose a folder on a writable disk with -o",
        }
        raise EnvironmentFailure(
            f"cannot be written: {err.strerror}",
            where=str(err.filename or where),
            remedy=remedies.get(err.errno or 0, "choose another output with -o"),
        ) from err


def _write(path: Path, content: bytes) -> None:
    """Reaches the disk before the rename that makes it count: a power cut must not leave an empty file in place."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _exchange(staging: Path, output: Path) -> None:
    """Swaps two folders in one step where the kernel can (Linux); elsewhere in three renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(output), _RENAME_EXCHANGE)
        if done == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(output))
    previous = _previous(output)
    os.rename(output, previous)
    os.rename(staging, output)
    with contextlib.suppress(OSError):  # the new bundle is in place; the next build clears the old one
        os.rename(previous, staging)


def _previous(output: Path) -> Path:
    return output.with_name(f".{output.name}.previous")
