"""What a peer is: something that people would use instead, and how one graph is opened in it."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from athe_export.dependencies import installed
from athe_export.preprocessing import Pixels, Preprocessing, Tensor

Logits = npt.NDArray[np.float32]
Run = Callable[[Tensor], Logits]  # float32 [1, 3, size, size] -> [1, classes]
DENSE, ROUTER, ROUTED_SIMPLE = "dense", "router", "routed simple"
OURS, RATES = "ours", "rates"
FAMILIES = ("torch", "neural_compressor", "onnxruntime", "litert", "openvino", "executorch")  # modules `<name>_peers`


class Asked(NamedTuple):
    """One image: what was answered, and the seconds of getting it to size and of the graph (ours: router and branch)."""

    output: Logits
    resize: float
    graph: float


Ask = Callable[[Pixels], Asked]


@dataclass(frozen=True)
class Row:
    """A line of the table: `graph` is dense, a branch, the router, `routed simple`, or the shape of a product."""

    family: str
    peer: str
    precision: str
    graph: str

    @property
    def name(self) -> str:
        return f"{self.peer}: {self.graph}"


@dataclass(frozen=True)
class Job:
    """The folder in which the main process leaves what every peer is given: see `prepare.py`."""

    folder: Path

    @cached_property
    def said(self) -> dict[str, Any]:
        return json.loads((self.folder / "job.json").read_text())

    @property
    def graphs(self) -> tuple[str, ...]:
        """The dense backbone and every branch."""
        return tuple(self.said["graphs"])

    @property
    def size(self) -> int:
        return int(self.said["image_size"])

    @property
    def preprocessing(self) -> Preprocessing:
        found = self.said["preprocessing"]
        return Preprocessing(found["source_size"], found["resize"], tuple(found["mean"]), tuple(found["std"]))

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """Test images at source size, uint8 [n, s, s, 3]."""
        return np.load(self.folder / "images.npy")

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        return np.load(self.folder / "labels.npy")

    def calibration(self, graph: str) -> Iterator[Tensor]:
        """The calibration images of a graph: a branch's are those that the router sends it."""
        for pixels in np.load(self.folder / f"{graph}.calibration.npy"):
            yield self.preprocessing.tensor(pixels, self.size)

    def file(self, graph: str, ending: str) -> Path:
        """A graph's file: `pt` a torch module, `onnx` or `tflite` its fp32 export; a peer writes its own beside them."""
        return self.folder / f"{graph}.{ending}"


@dataclass(frozen=True)
class Peer:
    """A way to run a model.

    Attributes:
        needs: import names; where one cannot be found the peer is not measured.
        open: from the job and a graph's name to what runs it on one thread. What it raises is the reason why it was not
            measured.
    """

    name: str
    precision: str
    needs: tuple[str, ...]
    open: Callable[[Job, str], Run]


def peers_of(family: str) -> tuple[Peer, ...]:
    """The peers of a family; nothing of theirs is imported yet."""
    found: tuple[Peer, ...] = importlib.import_module(f"peers.{family}_peers").PEERS
    return found


def peer_rows(families: tuple[str, ...], graphs: tuple[str, ...]) -> list[Row]:
    """Every line that these families can have, whether it can be measured or not."""
    return [Row(f, peer.name, peer.precision, graph) for f in families for peer in peers_of(f) for graph in graphs]


def open_peer(row: Row, job: Job) -> Ask:
    """A row's graph, ready to be asked.

    Raises:
        ModuleNotFoundError: names every package that is not installed.
    """
    peer = next(p for p in peers_of(row.family) if p.name == row.peer)
    if missing := [name for name in peer.needs if not installed(name)]:
        raise ModuleNotFoundError(f"not installed: {', '.join(missing)}")
    return asked_by(peer.open(job, row.graph), job.preprocessing, job.size)


def asked_by(run: Run, preprocessing: Preprocessing, size: int) -> Ask:
    """A graph that is asked with an image at source size; finding the largest logit is part of it."""

    def ask(pixels: Pixels) -> Asked:
        start = time.perf_counter()
        tensor = preprocessing.tensor(pixels, size)
        ready = time.perf_counter()
        output = run(tensor)
        int(output.argmax())
        return Asked(output, ready - start, time.perf_counter() - ready)

    return ask
