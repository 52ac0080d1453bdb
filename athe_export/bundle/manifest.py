"""The manifest of a bundle, format version 1; docs/bundle-format.md is its written form.

Its records are named tuples, as all are that a device imports: making a frozen dataclass takes ten times as long, and a
process that starts waits for each. Their annotations are no strings (`from __future__ import annotations`), since each of
those is compiled on its own.
"""

import functools
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, NamedTuple

from athe_export.errors import BundleIntegrityError, FileProblem

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"


class FileEntry(NamedTuple):
    """A file of the bundle: path relative to it with forward slashes, what it is for, size in bytes and digest."""

    path: str
    role: str
    bytes: int
    sha256: str
    optional: bool = False


class TensorInfo(NamedTuple):
    """A graph input or output; every dimension is fixed."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Borrowed(NamedTuple):
    """Where the rest of a graph is that is stored as a part: in the graph file `file`. `bytes` and `sha256` are of the graph
    put together, which is what an engine is given."""

    file: str
    bytes: int
    sha256: str


class GraphEntry(NamedTuple):
    """One graph. `role` is `router` or a branch's name, `precision` int8 or fp32, `mmacs` million multiply-accumulates an
    image; `float_op_names` lists every op that computes in float as `op_type name`. `bytes` and `sha256` are of `file`,
    which is the whole graph, or a part of it if it `borrows`."""

    role: str
    target: str
    precision: str
    file: str
    bytes: int
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    mmacs: float
    int8_ops: int
    float_ops: int
    float_op_names: tuple[str, ...]
    xnnpack: dict[str, Any] | None = None
    borrows: Borrowed | None = None

    @property
    def whole_bytes(self) -> int:
        """Size of the graph as an engine is given it."""
        return self.borrows.bytes if self.borrows else self.bytes

    @property
    def whole_sha256(self) -> str:
        """Digest of the graph as an engine is given it."""
        return self.borrows.sha256 if self.borrows else self.sha256

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the graph is read from, its own first."""
        return (self.file, self.borrows.file) if self.borrows else (self.file,)


class PruneEntry(NamedTuple):
    """After `after_blocks` blocks, `tokens` patch tokens remain."""

    after_blocks: int
    tokens: int


class BranchEntry(NamedTuple):
    """A branch, easiest first in the manifest; `head_indices` per block where heads were cut, else None.

    `topped_up` are calibration ids the router sends elsewhere, added because the branch had too few of its own.
    """

    name: str
    heads: int
    prune: tuple[PruneEntry, ...]
    scorer: str
    head_indices: tuple[tuple[int, ...], ...] | None
    calibration_images: int
    topped_up: tuple[int, ...]


class FrontierPoint(NamedTuple):
    """What the router's bounds at one place cost and give: share of the images by branch, top-1 as a share, mean MMACs an
    image with the router's own; `chosen` are the bounds in use."""

    bounds: tuple[float, ...]
    share: tuple[float, ...]
    top1: float
    mmacs: float
    chosen: bool = False


class RouterEntry(NamedTuple):
    """Ascending score bounds, one fewer than branches, for torch (`reference`) and for each target.

    A target's are those of its int8 router, which scores a little otherwise, where it has one. `frontier` has the same keys,
    of targets those with an int8 router; `frontier_images` are the `split` it was measured on and how many `images` of it.
    """

    arch: str
    image_size: int
    bounds: dict[str, tuple[float, ...]]
    frontier: dict[str, tuple[FrontierPoint, ...]] = {}  # noqa: RUF012, nobody writes into a manifest
    frontier_images: dict[str, Any] = {}  # noqa: RUF012


class PreprocessingEntry(NamedTuple):
    """Parameters of `athe_export.preprocessing` and the digest of its golden pattern at `sizes`."""

    source_size: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: tuple[int, ...]
    golden_sha256: str


class Manifest(NamedTuple):
    """Everything a bundle says of itself. Unknown keys of a newer writer are kept out of the way, not an error."""

    schema_version: int
    name: str
    recipe: dict[str, Any]
    checkpoint: dict[str, Any]
    dataset: dict[str, Any]
    calibration: dict[str, Any]
    tools: dict[str, str]
    preprocessing: PreprocessingEntry
    router: RouterEntry | None
    branches: tuple[BranchEntry, ...]
    graphs: tuple[GraphEntry, ...]
    golden: dict[str, Any]
    gate: dict[str, Any]
    verdict: str
    parity: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    files: tuple[FileEntry, ...] = ()
    precision: dict[str, Any] | None = None
    bench: dict[str, Any] | None = None
    controls: dict[str, Any] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that graphs are for, in the order of the graphs."""
        return tuple(dict.fromkeys(g.target for g in self.graphs))

    def precisions(self, target: str) -> tuple[str, ...]:
        """The precisions that every branch has for a target, int8 first."""
        found = [{g.precision for g in self.graphs if g.target == target and g.role == b.name} for b in self.branches]
        return tuple(p for p in ("int8", "fp32") if all(p in of_branch for of_branch in found))

    @property
    def systems(self) -> tuple[tuple[str, str], ...]:
        """Every (target, precision) that can route and classify on its own."""
        return tuple((target, precision) for target in self.targets for precision in self.precisions(target))

    def graphs_of(self, target: str, precision: str) -> dict[str, GraphEntry]:
        """The graphs of a system by role; a target whose router has only one precision uses it for both."""
        own = [g for g in self.graphs if g.target == target and (g.role == "router" or g.precision == precision)]
        return {g.role: g for g in sorted(own, key=lambda g: g.precision == precision)}

    def system_name(self, target: str, precision: str) -> str:
        """How a report calls a system: the target alone at its first precision, else `target/precision`."""
        return target if precision == self.precisions(target)[0] else f"{target}/{precision}"

    def router_bounds(self, target: str, precision: str) -> tuple[float, ...]:
        """The bounds for the scores of a target's router graph of this precision.

        Where a target has an int8 and an fp32 router, its own bounds are the int8 one's, and the fp32 one scores as the
        reference does.
        """
        assert self.router is not None
        own = {g.precision for g in self.graphs if g.target == target and g.role == "router"}
        return self.router.bounds["reference" if precision == "fp32" and "int8" in own else target]

    def file_of(self, role: str) -> FileEntry | None:
        return next((f for f in self.files if f.role == role), None)

    def stored_bytes(self, graphs: Iterable[GraphEntry]) -> int:
        """Size of the files that hold these graphs, each counted once."""
        wanted = {path for g in graphs for path in g.files}
        return sum(f.bytes for f in self.files if f.path in wanted)

    def sizes(self) -> list[dict[str, Any]]:
        """Of each system: `bytes` of the files that hold its graphs, `whole_bytes` of the graphs themselves."""
        graphs = {system: self.graphs_of(*system).values() for system in self.systems}
        return [
            {"target": t, "precision": p, "bytes": self.stored_bytes(own), "whole_bytes": sum(g.whole_bytes for g in own)}
            for (t, p), own in graphs.items()
        ]

    def to_json(self) -> dict[str, Any]:
        return typing.cast(dict[str, Any], _plain(self))

    def to_text(self) -> str:
        return json.dumps(_plain(self), indent=1, sort_keys=True) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """Reads a manifest.

    Raises:
        BundleIntegrityError: not JSON, an unknown schema version, or a field missing or of another type.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise BundleIntegrityError(f"the manifest is not JSON: {err}", where=where, files=_CHANGED) from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleIntegrityError(
            f"the manifest has schema_version {version!r}; this athe-export reads {SCHEMA_VERSION}",
            where=where,
            remedy="install the athe-export that wrote the bundle, or build it again with this one",
        )
    try:
        return _as(Manifest, content, "manifest")
    except TypeError as err:
        raise BundleIntegrityError(f"the manifest is malformed: {err}", where=where, files=_CHANGED) from None


_CHANGED = (FileProblem(MANIFEST, "changed"),)


def _as(kind: Any, value: Any, where: str) -> Any:
    """Turns JSON into the annotated type, strictly."""
    if type(value) is kind:  # nearly all of a manifest; a process that starts has to wait for it
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _as(next(a for a in args if a is not type(None)), value, where)
    if hasattr(kind, "_fields"):
        return _object(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{where} must be a list")
        if all(type(v) is args[0] for v in value):
            return tuple(value)
        return tuple(_as(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{where} must be an object")
        return {k: _as(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{where} must be {kind.__name__}")
    return value


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _object(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{where} must be an object")
    hints, values = _hints(cls), {}
    for name in cls._fields:
        if name in value:
            values[name] = _as(hints[name], value[name], f"{where}.{name}")
        elif name not in cls._field_defaults:
            raise TypeError(f"{where}.{name} is missing")
    return cls(**values)


def _plain(value: Any) -> Any:
    """As JSON has it: records and mappings as objects, other tuples as lists."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
