"""What is measured: the router, each branch, the routed whole and the dense control, of every target and precision.

A query is what a device does with an image: a PNG in memory is decoded, brought to its sizes, routed and classified.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from athe_export.bench.controls import DENSE, dense_accuracy
from athe_export.bench.protocol import Lap, Query
from athe_export.bundle.manifest import Manifest
from athe_export.bundle.reader import Bundle
from athe_export.errors import EnvironmentFailure, MissingDependency
from athe_export.preprocessing import Pixels, Preprocessing, decode_photo
from athe_export.runtime.golden import read_golden
from athe_export.runtime.predictor import RoutedGraphs, labels_of, preprocessing_of

ROUTER, BRANCH, ROUTED, ROUTED_SIMPLE = "router", "branch", "routed", "routed_simple"
PARTS = ("decode", "resize", "router", "branch")
PRECISIONS = ("int8", "fp32")
_MIX = 64  # images of the routed row, drawn so that each branch has its share


@dataclass(frozen=True, order=True)
class Key:
    """A row: `kind` is router, branch, routed, routed_simple or dense; `name` is the branch's where it is one."""

    target: str
    precision: str
    kind: str
    name: str


@dataclass(frozen=True)
class Row:
    """A row that can be measured.

    Attributes:
        query: one image.
        shares: by branch, of the images of a routed row; None where all images take one way.
        top1: what the gate measured of it; None: nothing.
        bytes: of its graphs, as the engine is given them.
        stored_bytes: of the files that hold them.
    """

    query: Query
    shares: Mapping[str, float] | None
    top1: float | None
    bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Rows:
    """What can be measured here, and why the rest cannot."""

    measured: Mapping[Key, Row]
    not_measured: Mapping[Key, str]


class ImageToLabel:
    """One query after another over the same images, again from the first when they have been used up.

    Args:
        photos: PNG files in memory.
        labels: of the classes.
        branch: one that every image takes, or `auto`.
        clock: for the parts of a query.
    """

    def __init__(
        self,
        graphs: RoutedGraphs,
        preprocessing: Preprocessing,
        photos: Sequence[bytes],
        labels: Sequence[str],
        branch: str = "auto",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._graphs, self._preprocessing, self._labels, self._branch = graphs, preprocessing, labels, branch
        self._photos, self._clock = itertools.cycle(photos), clock

    def __call__(self) -> Lap:
        parts = dict.fromkeys(PARTS, 0.0)
        last = self._clock()

        def mark(part: str) -> None:
            nonlocal last
            now = self._clock()
            parts[part] += now - last
            last = now

        pixels = decode_photo(next(self._photos)).pixels
        mark("decode")
        source = self._preprocessing.source(pixels)
        mark("resize")
        return Lap(self._finish(source, mark), parts)

    def _finish(self, source: Pixels, mark: Callable[[str], None]) -> str:
        answer = self._graphs.answer(source, self._preprocessing, self._branch, mark)
        str(self._labels[int(answer.logits.argmax())])
        mark("branch")  # the largest logit and its label
        return answer.branch


class ImageToScore(ImageToLabel):
    """The router alone."""

    def _finish(self, source: Pixels, mark: Callable[[str], None]) -> str:
        self._graphs.score(source, self._preprocessing, mark)
        return ROUTER


def png(pixels: Pixels) -> bytes:
    """An image as a PNG file in memory: nothing is lost, so that it is routed as it was where the bundle was built."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(bundle: Bundle, controls: Bundle | None, why: str, targets: Sequence[str], threads: int) -> Rows:
    """Every row of these targets, with its graphs opened.

    Args:
        controls: of the same build; without them rows that only they can give are not measured, because of `why`.
        targets: those whose engine is here.
    """
    measured: dict[Key, Row] = {}
    missing: dict[Key, str] = {}
    images = list(read_golden(bundle)["images"])
    for target in targets:
        systems = {p: _opened(bundle, controls, why, target, p, threads, images) for p in PRECISIONS}
        for key in keys_of(bundle.manifest, target):
            of = systems[key.precision]
            if key.kind == ROUTER:  # one may serve both precisions
                of = next((s for s in systems.values() if isinstance(s, _System) and s.router == key.precision), of)
            row = of.row(key, why) if isinstance(of, _System) else of
            if isinstance(row, Row):
                measured[key] = row
            else:
                missing[key] = row
    return Rows(measured, missing)


def keys_of(manifest: Manifest, target: str) -> list[Key]:
    """The rows of a target, whether they can be measured or not: int8 first."""
    rows = [(BRANCH, b.name) for b in manifest.branches]
    rows += [(ROUTED, ROUTED), (ROUTED_SIMPLE, ROUTED_SIMPLE)] if manifest.router else []
    if [b.name for b in manifest.branches] != [DENSE]:  # else the one branch is its own control
        rows.append((DENSE, DENSE))
    routers = {g.precision for g in manifest.graphs if g.target == target and g.role == ROUTER}
    found = [Key(target, p, ROUTER, ROUTER) for p in PRECISIONS if p in routers or (p == "fp32" and manifest.router)]
    return found + [Key(target, precision, kind, name) for precision in PRECISIONS for kind, name in rows]


def _opened(
    bundle: Bundle,
    controls: Bundle | None,
    why: str,
    target: str,
    precision: str,
    threads: int,
    images: Sequence[Pixels],
) -> _System | str:
    """A system with its graphs, from the bundle or else the controls; or why there is none."""
    holder = bundle if precision in bundle.manifest.precisions(target) else controls
    if holder is None:
        return f"the bundle has no {precision} graphs for {target}, and {why}"
    try:
        return _System(bundle, holder, controls, target, precision, threads, images)
    except (MissingDependency, EnvironmentFailure) as err:
        return f"{err.what}; {err.remedy}"


class _System:
    """A target at a precision with its graphs opened, and the golden images by the branch that they take there."""

    def __init__(
        self,
        bundle: Bundle,
        holder: Bundle,
        controls: Bundle | None,
        target: str,
        precision: str,
        threads: int,
        images: Sequence[Pixels],
    ) -> None:
        self._bundle, self._controls, self._system = bundle, controls, (target, precision)
        self._preprocessing, self._labels = preprocessing_of(bundle.manifest), labels_of(bundle)
        self._graphs = RoutedGraphs(holder, target, precision, threads)
        self._dense = RoutedGraphs(controls, target, precision, threads) if controls else None
        self._photos = photos_by_branch(self._graphs, self._preprocessing, images)
        self.all_photos = [photo for own in self._photos.values() for photo in own]
        self._graphs.open()  # before anything is timed; found out here where one cannot be
        if self._dense is not None:
            self._dense.session(DENSE)

    @property
    def router(self) -> str | None:
        """The precision of the router in use."""
        entry = self._graphs.entries.get(ROUTER)
        return entry.precision if entry else None

    def row(self, key: Key, why: str) -> Row | str:
        """The row, or why there is none; `why` is what is wrong with the controls."""
        roles, shares = [key.name], None
        if key.kind == DENSE:
            if self._dense is None:
                return why
            query: Query = self._query(self._dense, self.all_photos, DENSE)
            return Row(query, None, dense_accuracy(self._controls, *self._system), *self._dense.sizes([DENSE]))
        if key.kind == ROUTER:
            query = ImageToScore(self._graphs, self._preprocessing, self.all_photos, self._labels)
        elif key.kind == BRANCH:
            query = self._query(self._graphs, self.all_photos, key.name)
        else:
            names = [b.name for b in self._bundle.manifest.branches]
            shares = {names[0]: 1.0} if key.kind == ROUTED_SIMPLE else mix_of(self._bundle.manifest, *self._system)
            if lacking := [name for name, share in shares.items() if share and name not in self._photos]:
                return f"no golden image is routed to {', '.join(lacking)} here"
            query = self._query(self._graphs, mixed(self._photos, shares), "auto")
            roles = list(self._graphs.entries) if key.kind == ROUTED else [ROUTER, names[0]]
        return Row(query, shares, accuracy_of(self._bundle.manifest, key), *self._graphs.sizes(roles))

    def _query(self, graphs: RoutedGraphs, photos: Sequence[bytes], branch: str) -> ImageToLabel:
        return ImageToLabel(graphs, self._preprocessing, photos, self._labels, branch)


def photos_by_branch(graphs: RoutedGraphs, preprocessing: Preprocessing, images: Sequence[Pixels]) -> dict[str, list[bytes]]:
    """The images as PNG files, by the branch that each is routed to here."""
    found: dict[str, list[bytes]] = {}
    for image in images:
        score = graphs.score(image, preprocessing)[0] if ROUTER in graphs.entries else None
        found.setdefault(graphs.branch_of(score), []).append(png(image))
    return found


def mixed(photos: Mapping[str, Sequence[bytes]], shares: Mapping[str, float]) -> list[bytes]:
    """Images in random order, as many of each branch as its share asks for, and one at least where it has any."""
    drawn: list[bytes] = []
    for branch, share in shares.items():
        count = max(1, round(_MIX * share)) if share else 0
        drawn += itertools.islice(itertools.cycle(photos.get(branch, ())), count)
    return [drawn[i] for i in np.random.default_rng(0).permutation(len(drawn))]


def mix_of(manifest: Manifest, target: str, precision: str) -> dict[str, float]:
    """The share of images that each branch gets: as the gate has found it, else as the calibration images were split."""
    found = _gated(manifest, target, precision) or _gated(manifest, target, (*manifest.precisions(target), "int8")[0])
    if found:
        return {name: float(share) for name, share in found["share"].items()}
    images = {b.name: b.calibration_images - len(b.topped_up) for b in manifest.branches}
    total = sum(images.values())
    return {name: count / total if total else 1 / len(images) for name, count in images.items()}


def accuracy_of(manifest: Manifest, key: Key) -> float | None:
    """What the gate measured of a row, top-1 as a share: of a branch on the images that are routed to it.

    An fp32 system that the bundle does not hold was measured as a hop on the way to int8.
    """
    if key.kind == ROUTER or manifest.parity is None:
        return None
    path = manifest.branches[0].name if key.kind == ROUTED_SIMPLE else key.name
    if found := _gated(manifest, key.target, key.precision):
        measured = found["top1"] if key.kind == ROUTED else found["branches"][path].get("top1")
        return None if measured is None else float(measured)
    said = f"{key.target} {key.precision}"
    for hop in manifest.parity.get("hops") or ():
        if (hop.get("to"), hop.get("path")) == (said, path):
            after = hop.get("top1_after")
            return None if after is None else float(after)
    return None


def _gated(manifest: Manifest, target: str, precision: str) -> dict[str, Any] | None:
    """What the gate found of a system of the bundle."""
    if precision not in manifest.precisions(target):
        return None
    found: dict[str, Any] | None = ((manifest.parity or {}).get("targets") or {}).get(
        manifest.system_name(target, precision)
    )
    return found
