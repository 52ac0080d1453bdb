"""Writing graphs so that what they have in common is stored once: weights that branches share, and of a layer whose heads
were cut what was left of it. Only bytes are looked at, so that it serves every target, and whatever a quantizer made of
equal weights; where it made different bytes of them, nothing is shared.

The method is rsync's (Tridgell and Mackerras, The rsync algorithm, 1996): blocks of the one file are looked up at every
offset of the other. Matches are then extended to both sides, byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import Borrowed, GraphEntry
from athe_export.bundle.parts import Run, make_part
from athe_export.bundle.writer import StagedBundle

_PART = ".part"  # in the name of a file that is no whole graph, before its suffix
_WORTH = 0.1  # of a graph's bytes: the least that a part has to save
_BLOCK = 32  # bytes; at least half of the shortest run, so that one lies in it wherever it starts
LEAST = 64  # bytes of a run: it takes 12 to write one down
_WINDOW = 4096  # offsets that are looked up at once
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)
Bytes = npt.NDArray[np.uint8]


def add_graphs(staged: StagedBundle, graphs: Sequence[tuple[GraphEntry, bytes]], share: bool) -> tuple[GraphEntry, ...]:
    """Writes graphs, given whole with their content, and describes how they are stored: whole or, where asked to share, in
    parts.

    Then of each target and precision the last graph, which is the hardest branch's, stays whole, and the easier branches
    borrow from it what they have in common with it. So whoever opens one graph reads two files at most, and none of another
    precision. A router has no weights in common with a branch.

    Args:
        graphs: of each target and precision the easiest branch first.
    """
    lenders = {(entry.target, entry.precision): (entry, content) for entry, content in graphs} if share else {}
    return tuple(_add(staged, *graph, *lenders.get((graph[0].target, graph[0].precision), graph)) for graph in graphs)


def as_whole(entry: GraphEntry) -> GraphEntry:
    """The entry of a graph as it would be if it were stored whole."""
    stem, dot, suffix = entry.file.rpartition(".")
    name, size, digest = stem.removesuffix(_PART) + dot + suffix, entry.whole_bytes, entry.whole_sha256
    return entry._replace(file=name, bytes=size, sha256=digest, borrows=None)


def _add(staged: StagedBundle, entry: GraphEntry, content: bytes, lender: GraphEntry, lent: bytes) -> GraphEntry:
    role, part = f"graph:{entry.target}:{entry.role}:{entry.precision}", content
    if entry.file != lender.file and entry.role != "router":
        part = make_part(content, shared_runs(content, lent))
    if len(part) > (1 - _WORTH) * len(content):
        staged.add(entry.file, role, content)
        return entry
    stem, dot, suffix = entry.file.rpartition(".")
    file = staged.add(stem + _PART + dot + suffix, role, part)
    borrowed = Borrowed(lender.file, entry.bytes, entry.sha256)
    return entry._replace(file=file.path, bytes=file.bytes, sha256=file.sha256, borrows=borrowed)


def shared_runs(content: bytes, lender: bytes) -> tuple[Run, ...]:
    """Runs of `content` that stand in `lender` too: ascending, not overlapping, each of at least `LEAST` bytes."""
    return tuple(_runs(content, lender)) if min(len(content), len(lender)) >= LEAST else ()


def _runs(content: bytes, lender: bytes) -> Iterator[Run]:
    keys, first = np.unique(_hashes(lender, 0, len(lender) // _BLOCK, _BLOCK), return_index=True)
    ours, theirs = np.frombuffer(content, np.uint8), np.frombuffer(lender, np.uint8)
    start = at = 0  # nothing before `start` can be in another run; nothing before `at` matches
    while (count := min(_WINDOW, len(content) - _BLOCK + 1 - at)) > 0:
        for offset, block in _candidates(_hashes(content, at, count, 1), keys, first):
            here, there = at + offset, block * _BLOCK
            back = _equal(ours[start:here][::-1], theirs[:there][::-1])
            length = back + _equal(ours[here:], theirs[there:])
            if length >= LEAST:
                yield Run(here - back, there - back, length)
                start = at = here - back + length
                break
        else:
            at += count


def _hashes(content: bytes, start: int, count: int, stride: int) -> npt.NDArray[np.uint64]:
    """A hash of each of `count` blocks from `start` on, one every `stride` bytes."""
    words = (np.ndarray((count,), "<u8", content, start + 8 * i, (stride,)) for i in range(_BLOCK // 8))
    total = np.zeros(count, np.uint64)
    for word, factor in zip(words, _FACTORS, strict=True):
        total += word * factor
    return total


def _candidates(
    hashes: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], first: npt.NDArray[np.intp]
) -> Iterator[tuple[int, int]]:
    """Positions in `hashes`, ascending, with the number of a block that has that hash."""
    found = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
    for position in np.flatnonzero(keys[found] == hashes):
        yield int(position), int(first[found[position]])


def _equal(one: Bytes, other: Bytes) -> int:
    """How many bytes both begin with."""
    step, done, longest = 256, 0, min(len(one), len(other))
    while done < longest:
        differ = one[done : min(done + step, longest)] != other[done : min(done + step, longest)]
        if differ.any():
            return done + int(differ.argmax())
        done, step = min(done + step, longest), 4 * step
    return longest
