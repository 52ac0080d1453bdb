"""`Predictor.load(bundle).predict(image)`: the routed system on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.errors import BundleIntegrityError, UsageError
from athe_export.preprocessing import GraphInput, Pixels, Preprocessing, read_photo
from athe_export.runtime.engines import ENGINES, Session, resolve_target
from athe_export.runtime.litert_session import LitertSession
from athe_export.runtime.routing import RouterPolicy

Logits = npt.NDArray[np.float32]
Mark = Callable[[str], None]  # told that a part of an image's way is over: resize, router, branch


class Answer(NamedTuple):
    """One routed inference: logits float32 [classes], the branch that gave them, the difficulty (None: no router)."""

    logits: Logits
    branch: str
    router_score: float | None


class Prediction(NamedTuple):
    """A classified image; `top` are (label, probability) best first.

    `ms` is wall time from decoded pixels to label; the first image of a branch includes opening its graph.
    """

    label: str
    probability: float
    branch: str
    router_score: float | None
    ms: float
    top: tuple[tuple[str, float], ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `run --json` has it."""
        return {**self._asdict(), "top": [list(t) for t in self.top], "notes": list(self.notes)}


def open_session(bundle: Bundle, entry: GraphEntry, threads: int = 1) -> Session:
    """The engine's session of one graph, its bytes and shapes checked against the manifest.

    Raises:
        BundleIntegrityError: the file is not what the manifest promises, or the engine cannot load it.
        MissingDependency: the engine is not installed, or too old for the graph.
        EnvironmentFailure: LiteRT has no XNNPACK here.
        UsageError: less than one thread.
    """
    return _session(bundle, entry, bundle.graph(entry), threads)


def _session(bundle: Bundle, entry: GraphEntry, content: bytes, threads: int) -> Session:
    where = str(bundle.path / entry.file)
    try:
        session = ENGINES[entry.target](content, threads)
    except BundleIntegrityError as err:
        raise BundleIntegrityError(err.what, where=where, remedy=err.remedy) from err
    if (session.input_shape, session.output_shape) != (entry.inputs[0].shape, entry.outputs[0].shape):
        raise BundleIntegrityError("the graph's shapes are not those in the manifest", where=where)
    return session


def slower_here(session: Session, entry: GraphEntry) -> str | None:
    """Says so where XNNPACK takes a TFLite graph in more parts than where it was built; None where all is well."""
    if not isinstance(session, LitertSession) or entry.xnnpack is None:
        return None
    built = int(entry.xnnpack["partitions"])
    if session.partitions <= built:
        return None
    return (
        f"XNNPACK takes {entry.file} in {session.partitions} partitions here and took it in {built} where it was built: it "
        "will be slow; install ai-edge-litert in the version of the manifest's tools"
    )


def unmarked(part: str) -> None:
    """Tells nobody."""


class RoutedGraphs:
    """The sessions of one target and the policy between them; graphs are opened on first use."""

    def __init__(self, bundle: Bundle, target: str, precision: str = "auto", threads: int = 1) -> None:
        self._bundle, self._threads = bundle, threads
        self._entries = _choose(bundle.manifest, target, precision)
        self._sessions: dict[str, Session] = {}
        self.notes: list[str] = []  # on graphs that run slower here than they were built for
        router = self._entries.get("router")
        self._policy = RouterPolicy(bundle.manifest.router_bounds(target, router.precision)) if router else None
        self.branches = tuple(b.name for b in bundle.manifest.branches)

    def session(self, role: str) -> Session:
        """The session of `router` or a branch.

        Raises:
            BundleIntegrityError: its file is not what the manifest promises.
        """
        if role not in self._sessions:
            self._keep(role, self._bundle.graph(self._entries[role]))
        return self._sessions[role]

    def open(self) -> None:
        """Opens every graph that is not open yet; a file that several need is read and checked once.

        Raises:
            BundleIntegrityError: a file is not what the manifest promises.
        """
        closed = [role for role in self._entries if role not in self._sessions]
        for role, content in zip(closed, self._bundle.graphs([self._entries[role] for role in closed]), strict=True):
            self._keep(role, content)

    def _keep(self, role: str, content: bytes) -> None:
        self._sessions[role] = _session(self._bundle, self._entries[role], content, self._threads)
        if note := slower_here(self._sessions[role], self._entries[role]):
            self.notes.append(note)

    def answer(self, source: Pixels, preprocessing: Preprocessing, branch: str = "auto", mark: Mark = unmarked) -> Answer:
        """Routes and classifies one image at source size, uint8 [s, s, 3]; a branch that is named is taken unrouted."""
        score: float | None = None
        given: GraphInput | None = None
        if self._policy is not None and branch == "auto":
            score, given = self.score(source, preprocessing, mark)
        if branch == "auto":
            branch = self.branch_of(score)
        if given is None or given.shape != self._shape(branch):  # else the router has seen the same pixels
            given = preprocessing.graph_input(source, self._shape(branch))
            mark("resize")
        logits = self.session(branch).run(given).reshape(-1)
        mark("branch")
        return Answer(logits, branch, score)

    def score(self, source: Pixels, preprocessing: Preprocessing, mark: Mark = unmarked) -> tuple[float, GraphInput]:
        """The router's difficulty of an image at source size, and what it was given."""
        given = preprocessing.graph_input(source, self._shape("router"))
        mark("resize")
        score = float(self.session("router").run(given).reshape(-1)[0])
        mark("router")
        return score, given

    def branch_of(self, score: float | None) -> str:
        """The branch of an image with this difficulty; without a router, the one that there is."""
        return self.branches[self._policy.branch_of(score) if self._policy and score is not None else 0]

    @property
    def entries(self) -> Mapping[str, GraphEntry]:
        """The graph in use of the router, where there is one, and of every branch."""
        return self._entries

    def sizes(self, roles: Iterable[str]) -> tuple[int, int]:
        """Bytes of these graphs, and of the files that hold them."""
        graphs = [self._entries[role] for role in roles]
        return sum(g.whole_bytes for g in graphs), self._bundle.manifest.stored_bytes(graphs)

    def _shape(self, role: str) -> tuple[int, ...]:
        return self._entries[role].inputs[0].shape


class Predictor:
    """Classifies images with a bundle; needs numpy, Pillow and one engine.

    `target` is the one in use, `passed_over` faster ones of the bundle that cannot run here, with the reason.
    """

    def __init__(self, bundle: Bundle, target: str = "auto", precision: str = "auto", threads: int = 1) -> None:
        self.bundle = bundle
        self.target, self.passed_over = resolve_target(bundle.manifest, target)
        self.preprocessing = preprocessing_of(bundle.manifest)
        self.graphs = RoutedGraphs(bundle, self.target, precision, threads)
        self.labels = labels_of(bundle)

    @classmethod
    def load(cls, path: Path | str, target: str = "auto", precision: str = "auto", threads: int = 1) -> Predictor:
        """Opens a bundle folder.

        Raises:
            BundleIntegrityError, MissingDependency, UsageError.
        """
        return cls(open_bundle(Path(path)), target, precision, threads)

    def check_branch(self, branch: str) -> None:
        """
        Raises:
            UsageError: it is neither `auto` nor a branch of the bundle.
        """
        if branch != "auto" and branch not in self.graphs.branches:
            raise UsageError(
                f"there is no branch {branch!r}", where="--branch", remedy="use auto, " + ", ".join(self.graphs.branches)
            )

    def predict(self, image: Path | str | Pixels, branch: str = "auto", top: int = 5) -> Prediction:
        """Classifies an image file, or RGB pixels uint8 [height, width, 3] of any size.

        Raises:
            ImageError: the file is not a usable image.
            UsageError: there is no such branch, or the array is not RGB uint8.
        """
        self.check_branch(branch)
        notes: tuple[str, ...] = ()
        if isinstance(image, np.ndarray):
            pixels = _checked(image)
        else:
            photo = read_photo(Path(image))
            pixels, notes = photo.pixels, photo.notes
        start = time.perf_counter()
        answer = self.graphs.answer(self.preprocessing.source(pixels), self.preprocessing, branch)
        ms = (time.perf_counter() - start) * 1e3
        shifted = np.exp(answer.logits - answer.logits.max())
        probability = shifted / shifted.sum()
        best = np.argsort(-probability, kind="stable")[:top]
        ranked = tuple((self.labels[i], float(probability[i])) for i in best)
        first = int(answer.logits.argmax())
        return Prediction(
            self.labels[first], float(probability[first]), answer.branch, answer.router_score, ms, ranked, notes
        )


def preprocessing_of(manifest: Manifest) -> Preprocessing:
    p = manifest.preprocessing
    return Preprocessing(p.source_size, p.resize, p.mean, p.std)


def labels_of(bundle: Bundle) -> tuple[str, ...]:
    entry = bundle.manifest.file_of("labels")
    if entry is None:
        raise BundleIntegrityError("the manifest names no labels", where=str(bundle.path))
    labels = tuple(bundle.read(entry.path).decode(errors="replace").split("\n")[:-1])
    for graph in (g for g in bundle.manifest.graphs if g.role != "router"):
        if graph.outputs[0].shape[-1:] != (len(labels),):
            raise BundleIntegrityError(f"{len(labels)} labels do not fit {graph.file}", where=str(bundle.path / entry.path))
    return labels


def _choose(manifest: Manifest, target: str, precision: str) -> dict[str, GraphEntry]:
    """One graph per role: the precision asked for, `auto` preferring int8; a router of one precision serves both."""
    chosen: dict[str, GraphEntry] = {}
    for role in [*(["router"] if manifest.router else []), *(b.name for b in manifest.branches)]:
        found = {g.precision: g for g in manifest.graphs if g.target == target and g.role == role}
        wanted = [precision] if precision != "auto" else ["int8", "fp32"]
        if role == "router":
            wanted += ["fp32", "int8"]
        entry = next((found[p] for p in wanted if p in found), None)
        if entry is None:
            raise UsageError(
                f"the bundle has no {precision} graph of {role} for {target}",
                where="--precision",
                remedy="use " + ", ".join(found) if found else "build the bundle again",
            )
        chosen[role] = entry
    return chosen


def _checked(image: npt.NDArray[Any]) -> Pixels:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(
            f"pixels must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}",
            remedy="convert them with Pillow",
        )
    return image
