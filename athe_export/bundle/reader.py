"""Opening a bundle: every listed file is checked before its bytes are used, and anything unexpected is refused."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from athe_export.bundle.consistency import inconsistencies
from athe_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST, FileEntry, GraphEntry, Manifest, parse_manifest
from athe_export.bundle.parts import put_together
from athe_export.errors import BundleIntegrityError, FileProblem

_AGAIN = "copy the bundle again from where it was built, or build it again"


class Bundle(NamedTuple):
    """An opened bundle: its manifest is verified; files are verified when read."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which holds every other file's: equal for copies of a bundle, and for them alone."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of a listed file.

        Raises:
            BundleIntegrityError: not listed, missing, or not the bytes that the manifest promises.
        """
        return self._require(name, _content(self.path, self._listed(name)))

    def graph(self, entry: GraphEntry) -> bytes:
        """The bytes of a graph as an engine is given them; one that is stored as a part is put together.

        Raises:
            BundleIntegrityError: a file of it is not listed, missing, or not the bytes that the manifest promises.
        """
        part = self.read(entry.file)
        if entry.borrows is None:
            return part
        content = b""
        with contextlib.suppress(OSError, ValueError):  # the end says what is wrong
            content = put_together(part, _mapped(self.path / entry.borrows.file))
        if hashlib.sha256(content).hexdigest() == entry.borrows.sha256:  # the lender's would cover more than is used
            return content
        self.read(entry.borrows.file)  # says so where it is that file that was changed
        raise self._not_made(entry, entry.borrows.file)

    def graphs(self, entries: Sequence[GraphEntry]) -> list[bytes]:
        """`graph` of each; a file that several need is read and checked once, and hashed while others are read.

        Raises:
            BundleIntegrityError: as `graph`.
        """
        whole: dict[str, bytes] = {}
        digests: dict[str, _Digest] = {}
        for name in (entry.file for entry in entries if entry.borrows is None):
            whole[name] = self._require(name, _unchecked(self.path, self._listed(name)))
            digests[name] = _Digest(whole[name])
        made = [whole[e.file] if e.borrows is None else self._of_lender(e, whole.get(e.borrows.file)) for e in entries]
        for name, digest in digests.items():  # before an engine is given any of it
            self._require(name, whole[name] if digest.hexdigest() == self._listed(name).sha256 else "changed")
        return made

    def _of_lender(self, entry: GraphEntry, lender: bytes | None) -> bytes:
        """A graph that is a part, of a lender whose digest is checked later; without one, as `graph` makes it."""
        if entry.borrows is None or lender is None:
            return self.graph(entry)
        part = self.read(entry.file)  # checked now: it says how much is to be put together
        with contextlib.suppress(ValueError):
            content = put_together(part, lender)
            if len(content) == entry.borrows.bytes:
                return content
        raise self._not_made(entry, entry.borrows.file)

    def _listed(self, name: str) -> FileEntry:
        entry = next((f for f in self.manifest.files if f.path == name), None)
        if entry is None:
            raise BundleIntegrityError(f"{name} is not in the manifest", where=str(self.path), remedy=_AGAIN)
        return entry

    def _require(self, name: str, found: bytes | str) -> bytes:
        """The bytes of a file; raises where there is a problem with it in their place."""
        if isinstance(found, bytes):
            return found
        raise BundleIntegrityError(
            f"a file of the bundle is {found}: {name}",
            where=str(self.path),
            remedy=_AGAIN,
            files=(FileProblem(name, found),),
        )

    def _not_made(self, entry: GraphEntry, lender: str) -> BundleIntegrityError:
        return BundleIntegrityError(
            f"{entry.file} and {lender} do not make the graph in the manifest", where=str(self.path), remedy=_AGAIN
        )

    def check(self) -> None:
        """Verifies every file.

        Raises:
            BundleIntegrityError: lists every file that is changed, missing or extra.
        """
        problems = []
        for entry in self.manifest.files:
            found = _content(self.path, entry)
            if isinstance(found, str) and not (found == "missing" and entry.optional):
                problems.append(FileProblem(entry.path, found))
        listed = {f.path for f in self.manifest.files} | {MANIFEST, MANIFEST_DIGEST}
        problems += [FileProblem(p, "extra") for p in _files_below(self.path) if p not in listed]
        if problems:
            raise BundleIntegrityError(
                f"{len(problems)} file(s) are not as the manifest says: "
                + ", ".join(f"{p.path} {p.problem}" for p in problems),
                where=str(self.path),
                remedy=_AGAIN,
                files=tuple(problems),
            )


def open_bundle(path: Path) -> Bundle:
    """Opens a bundle and verifies its manifest and the containment of every path in it.

    Raises:
        BundleIntegrityError: no bundle there, manifest changed or unknown, or a path that leaves the bundle.
    """
    if not path.is_dir():
        raise BundleIntegrityError(
            "there is no bundle here",
            where=str(path),
            remedy="give the folder that holds manifest.json",
            files=(FileProblem(MANIFEST, "missing"),),
        )
    contents, texts = {}, {}
    for name in (MANIFEST, MANIFEST_DIGEST):
        try:
            contents[name] = (path / name).read_bytes()
            texts[name] = contents[name].decode()
        except (OSError, UnicodeDecodeError):
            raise BundleIntegrityError(
                f"{name} is missing or unreadable", where=str(path), remedy=_AGAIN, files=(FileProblem(name, "missing"),)
            ) from None
    manifest = parse_manifest(texts[MANIFEST], str(path / MANIFEST))
    digest = hashlib.sha256(contents[MANIFEST]).hexdigest()
    if texts[MANIFEST_DIGEST].split()[:1] != [digest]:
        raise BundleIntegrityError(
            f"{MANIFEST} does not match {MANIFEST_DIGEST}",
            where=str(path),
            remedy=_AGAIN,
            files=(FileProblem(MANIFEST, "changed"),),
        )
    whole = path.resolve()
    for name in dict.fromkeys(
        (MANIFEST, MANIFEST_DIGEST, *(f.path for f in manifest.files), *(g.file for g in manifest.graphs))
    ):
        _require_contained(path, whole, name)
    if problems := inconsistencies(manifest):
        raise BundleIntegrityError(
            "the manifest contradicts itself:\n" + "\n".join(f"  {p}" for p in problems), where=str(path / MANIFEST)
        )
    return Bundle(path, manifest)


def _require_contained(bundle: Path, whole: Path, name: str) -> None:
    """Raises BundleIntegrityError where a name leads out of the bundle, whose resolved path is `whole`."""
    pure = PurePosixPath(name)
    escapes = pure.is_absolute() or ".." in pure.parts or not name or any(c in name for c in "\\:\0")
    if not escapes:
        try:
            escapes = not (bundle / name).resolve().is_relative_to(whole)
        except (OSError, RuntimeError):  # a loop of links leads nowhere
            escapes = True
    if escapes:
        raise BundleIntegrityError(
            f"a path leaves the bundle: {name!r}",
            where=str(bundle / MANIFEST),
            remedy="do not use this bundle; build it again",
            files=(FileProblem(name, "extra"),),
        )


def _mapped(path: Path) -> mmap.mmap:
    """A file's bytes where the kernel has them: some of them will be copied, and all at once is quicker than page by page.

    Raises:
        OSError, ValueError: there is no such file, or nothing in it.
    """
    if not path.is_file():  # opening a pipe would wait
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        if hasattr(mmap, "MAP_POPULATE"):
            return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Digest:
    """sha256 of a file's bytes, computed on a thread of its own: hashing leaves Python's lock to others."""

    def __init__(self, content: bytes) -> None:
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._hash.update, args=(content,))
        self._thread.start()

    def hexdigest(self) -> str:
        self._thread.join()
        return self._hash.hexdigest()


def _content(bundle: Path, entry: FileEntry) -> bytes | str:
    """The file's bytes, or the problem with it."""
    content = _unchecked(bundle, entry)
    if isinstance(content, str) or hashlib.sha256(content).hexdigest() == entry.sha256:
        return content
    return "changed"


def _unchecked(bundle: Path, entry: FileEntry) -> bytes | str:
    """The file's bytes, whatever they are, or the problem with it; a file of another size, or a pipe, is not read at all."""
    path = bundle / entry.path
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.bytes:
            return "changed"
        return path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "changed"


def _files_below(folder: Path) -> list[str]:
    found = []
    for root, folders, files in os.walk(folder):
        links = [f for f in folders if (Path(root) / f).is_symlink()]
        found += [(Path(root) / f).relative_to(folder).as_posix() for f in [*files, *links]]
    return sorted(found)
