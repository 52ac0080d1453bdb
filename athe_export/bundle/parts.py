"""A graph stored as a part: the bytes that it has in common with another graph of the bundle lie in that one's file.

A part is `MAGIC`, the number of runs, the runs, and then every byte of the graph that is in no run, in order. A run says
that `length` bytes of the graph, from `at` on, are those of the lender's file from `source` on. All numbers are unsigned
32-bit, little-endian. No engine takes a part for a graph. Standard library alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from mmap import mmap
from typing import NamedTuple

MAGIC = b"ATHEPART"
_COUNT, _RUN = struct.Struct("<I"), struct.Struct("<III")


class Run(NamedTuple):
    """`length` bytes of a graph from `at` on, which stand in the lender from `source` on."""

    at: int
    source: int
    length: int


def make_part(content: bytes, runs: Sequence[Run]) -> bytes:
    """A graph without what is in `runs`, which are ascending and do not overlap."""
    own, end = [], 0
    for run in runs:
        own.append(content[end : run.at])
        end = run.at + run.length
    head = MAGIC + _COUNT.pack(len(runs)) + b"".join(_RUN.pack(*run) for run in runs)
    return b"".join((head, *own, content[end:]))


def put_together(part: bytes, lender: bytes | mmap) -> bytes:
    """The graph that `make_part` was given; of other bytes, others, so that the caller checks the digest.

    Raises:
        ValueError: not a part, or not one of this lender.
    """
    return b"".join(_pieces(memoryview(part), memoryview(lender)))


def _pieces(part: memoryview, lender: memoryview) -> Iterator[memoryview]:
    start = len(MAGIC) + _COUNT.size
    if part[: len(MAGIC)] != MAGIC or len(part) < start:
        raise ValueError("it is not a part of a graph")
    (count,) = _COUNT.unpack_from(part, len(MAGIC))
    own = start + count * _RUN.size
    if own > len(part):
        raise ValueError("it is cut off")
    end = 0
    for at, source, length in _RUN.iter_unpack(part[start:own]):
        if at < end or source + length > len(lender) or own + at - end > len(part):
            raise ValueError("its runs leave the files")
        if at > end:
            yield part[own : own + at - end]
        yield lender[source : source + length]
        own, end = own + at - end, at + length
    yield part[own:]
