"""What every branch of a system answers on every image, so that any way of routing can be judged from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.bench.machine import processor
from athe_export.data.source import Dataset, Progress
from athe_export.dependencies import installed_version
from athe_export.evaluation.cells import Cell, Cells
from athe_export.evaluation.corruptions import Corrupted, Corruption
from athe_export.evaluation.subset import ids_sha256
from athe_export.evaluation.systems import System
from athe_export.parity.run import answers_of_every_branch
from athe_export.runtime.predictor import preprocessing_of
from athe_export.runtime.routing import RouterPolicy

ENGINES = {"litert": ("ai_edge_litert", "tflite_runtime"), "onnx": ("onnxruntime",)}
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """n images: ids and labels int64 [n], top classes int64 [branches, n], difficulty float32 [n], the bounds."""

    ids: Ids
    labels: Ids
    answers: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    bounds: tuple[float, ...]
    cell: Cell

    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each branch is right, [n, branches]."""
        return (self.answers == self.labels).T

    def routed(self) -> Ids:
        """Position of the branch that the system's own router chooses, [n]; 0 without one."""
        if not self.bounds:
            return np.zeros(len(self.ids), np.int64)
        return RouterPolicy(self.bounds).branches_of(self.scores)

    def among(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of the images are of these, [n]."""
        return np.isin(self.ids, ids)


def answer_cell(
    cells: Cells, system: System, ids: Ids, dataset: Dataset, corruption: Corruption | None, seed: int, progress: Progress
) -> Answers:
    """The answers of a system on these images of its gate's split, from the cell or measured now."""
    split, preprocessing = system.manifest.gate["split"], preprocessing_of(system.manifest)
    depends = {
        "bundle": system.of.bundle.digest,
        "target": system.target,
        "precision": system.precision,
        "dataset": dataset.digest,
        "split": split,
        "ids_sha256": ids_sha256(ids),
        "corruption": None if corruption is None else {**vars(corruption), "level": corruption.level, "seed": seed},
        **engine_of(system.target),
    }
    seen: Dataset = dataset if corruption is None else Corrupted(dataset, corruption, preprocessing, seed)
    measured = _measure(system, ids, seen, progress)
    cell = cells.get("answers", depends, measured)
    content = cell.content
    answers, scores = np.asarray(content["answers"], np.int64), np.asarray(content["scores"], np.float32)
    return Answers(ids, dataset.labels(split)[ids], answers, scores, system.bounds, cell)


def engine_of(target: str) -> dict[str, Any]:
    """What answers and times hang on besides the bundle: the engine's version and the processor."""
    versions = {name: version for name in ENGINES.get(target, ()) if (version := installed_version(name))}
    return {"engine": versions, "processor": processor().key}


def _measure(system: System, ids: Ids, dataset: Dataset, progress: Progress) -> Callable[[], Mapping[str, Any]]:
    def measured() -> Mapping[str, Any]:
        answers, scores = answers_of_every_branch(
            system.of.bundle, (system.target, system.precision), ids, dataset, progress
        )
        return {"answers": answers.tolist(), "scores": scores.tolist()}

    return measured
