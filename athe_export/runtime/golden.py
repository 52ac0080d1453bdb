"""Golden images: what every graph answered where the bundle was built, checked again wherever it arrives."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.bundle.reader import Bundle
from athe_export.errors import BundleIntegrityError, EnvironmentFailure, MissingDependency
from athe_export.preprocessing import Pixels
from athe_export.runtime.engines import Session, unavailable
from athe_export.runtime.predictor import open_session, preprocessing_of, slower_here
from athe_export.runtime.routing import RouterPolicy

# The difference that another machine may show. int8 graphs have float ops between integer ones, so one rounding can fall
# the other way there, which moves logits by a small part of their spread; fp32 differs by summation order alone.
INT8_TOLERANCE = 0.2  # of the standard deviation of a graph's logits
FP32_TOLERANCE = 1e-3
INT8_ROUTER = "router/int8"  # key of the tolerance of int8 routers, whose scores come in steps of 1/256
INT8_ROUTER_TOLERANCE = 3 / 256


@dataclass(frozen=True)
class GoldenResult:
    """One graph on the golden images: same decision on all, bit-equal outputs, largest absolute difference.

    `note` says where it runs slower here than it was built for.
    """

    target: str
    role: str
    precision: str
    same_top1: bool
    bit_equal: bool
    max_abs_diff: float
    tolerance: float
    note: str | None = None

    @property
    def passed(self) -> bool:
        return self.same_top1 and self.max_abs_diff <= self.tolerance


def key(target: str, role: str, precision: str) -> str:
    """Name of a graph's stored outputs in golden.npz."""
    return f"{target}/{role}/{precision}"


@dataclass(frozen=True)
class NotRun:
    """Graph files of a target that could not be opened here, and why."""

    target: str
    why: str
    files: tuple[str, ...]


def graph_outputs(
    bundle: Bundle, entry: GraphEntry, images: list[Pixels], session: Session | None = None
) -> npt.NDArray[np.float32]:
    """A graph's outputs on source images, [n, ...], from a session of it or one that is opened for this.

    Raises:
        MissingDependency, EnvironmentFailure: it cannot be opened here.
        BundleIntegrityError: it can be opened nowhere.
    """
    preprocessing, shape = preprocessing_of(bundle.manifest), entry.inputs[0].shape
    session = session or open_session(bundle, entry)
    return np.stack([session.run(preprocessing.graph_input(image, shape)).reshape(-1) for image in images])


def tolerances(outputs: dict[str, npt.NDArray[np.float32]]) -> dict[str, float]:
    """Largest allowed absolute difference by precision, from a bundle's own outputs keyed as stored."""
    int8 = [(name.partition("/")[2], float(x.std())) for name, x in outputs.items() if name.endswith("/int8")]
    spreads = [spread for graph, spread in int8 if graph != INT8_ROUTER]
    routers = {INT8_ROUTER: INT8_ROUTER_TOLERANCE} if len(spreads) < len(int8) else {}
    return {"int8": INT8_TOLERANCE * min(spreads, default=1.0), "fp32": FP32_TOLERANCE} | routers


def tolerance_of(allowed: dict[str, float], role: str, precision: str) -> float:
    """The tolerance of a graph; an int8 router has its own where the bundle states one."""
    return allowed.get(f"{role}/{precision}", allowed[precision])


def margins(
    manifest: Manifest, outputs: dict[str, npt.NDArray[np.float32]], allowed: dict[str, float]
) -> npt.NDArray[np.float64]:
    """How far each image's decisions are from tipping over, in tolerances: the least over all graphs, [n].

    Golden images are chosen by it, since one that lies on the edge may be answered otherwise by a healthy machine.
    """
    found = []
    for name, output in outputs.items():
        target, role, precision = name.split("/")
        if role == "router":
            distance = np.abs(output - np.asarray(manifest.router_bounds(target, precision), np.float32)).min(-1)
        else:
            ranked = np.sort(output, -1)
            distance = (ranked[:, -1] - ranked[:, -2]) / 2  # both may move
        found.append(distance.astype(np.float64) / tolerance_of(allowed, role, precision))
    return np.min(found, axis=0)


def golden_bytes(images: list[Pixels], outputs: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """golden.npz: `images` uint8 [n, s, s, 3] and one array a graph."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.stack(images), **outputs)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_golden(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """The arrays of golden.npz; never unpickles.

    Raises:
        BundleIntegrityError: absent, not such a file, or not an output for every image.
    """
    entry = bundle.manifest.file_of("golden")
    if entry is None:
        raise BundleIntegrityError("the manifest names no golden images", where=str(bundle.path))
    graphs = {key(g.target, g.role, g.precision): g.outputs[0].shape for g in bundle.manifest.graphs}
    try:
        with np.load(io.BytesIO(bundle.read(entry.path)), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in ("images", *graphs)}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as err:
        raise BundleIntegrityError(f"golden images are unreadable: {err}", where=entry.path) from None
    images, side = arrays["images"], bundle.manifest.preprocessing.source_size
    wrong = [n for n, shape in graphs.items() if arrays[n].shape != (len(images), math.prod(shape))]
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or not len(images) or wrong:
        raise BundleIntegrityError(
            "golden images and outputs do not belong together: " + (", ".join(wrong) or "images"), where=entry.path
        )
    return arrays


def check_golden(bundle: Bundle) -> tuple[tuple[GoldenResult, ...], tuple[NotRun, ...]]:
    """Runs every graph that can be opened here on the golden images.

    Returns:
        Results, and the graphs that were not run with the reason: no graph is in both.
    """
    stored = read_golden(bundle)
    missing = unavailable(bundle.manifest.targets)
    results: list[GoldenResult] = []
    left: dict[tuple[str, str], list[str]] = {}
    for entry in bundle.manifest.graphs:
        why = missing.get(entry.target)
        try:
            if why is None:
                results.append(check_graph(bundle, entry, stored, open_session(bundle, entry)))
                continue
        except (MissingDependency, EnvironmentFailure) as err:
            why = f"{err.what}; {err.remedy}"
        left.setdefault((entry.target, why), []).append(entry.file)
    return tuple(results), tuple(NotRun(target, why, tuple(files)) for (target, why), files in left.items())


def check_graph(bundle: Bundle, entry: GraphEntry, stored: dict[str, npt.NDArray[Any]], session: Session) -> GoldenResult:
    """One graph on the golden images, in a session of it; `stored` is what `read_golden` gives."""
    found = graph_outputs(bundle, entry, list(stored["images"]), session)
    name = key(entry.target, entry.role, entry.precision)
    return dataclasses.replace(_compare(bundle.manifest, name, stored[name], found), note=slower_here(session, entry))


def _compare(
    manifest: Manifest, name: str, expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]
) -> GoldenResult:
    target, role, precision = name.split("/")
    if role == "router":
        policy = RouterPolicy(manifest.router_bounds(target, precision))
        same = np.array_equal(policy.branches_of(expected[:, 0]), policy.branches_of(found[:, 0]))
    else:
        same = np.array_equal(expected.argmax(-1), found.argmax(-1))
    difference = float(np.abs(expected - found).max())
    tolerance = float(tolerance_of(manifest.golden["tolerance"], role, precision))
    return GoldenResult(target, role, precision, bool(same), np.array_equal(expected, found), difference, tolerance)
