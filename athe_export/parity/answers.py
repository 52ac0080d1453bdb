"""Running a bundle's target over gate images, one at a time, as the device would."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from athe_export.data.source import Dataset, Progress
from athe_export.parity.gate import TargetAnswers
from athe_export.preprocessing import Preprocessing
from athe_export.runtime.predictor import RoutedGraphs


def target_answers(
    graphs: RoutedGraphs,
    preprocessing: Preprocessing,
    dataset: Dataset,
    split: str,
    ids: npt.NDArray[np.int64],
    progress: Progress,
    title: str,
) -> TargetAnswers:
    """Routes and classifies the images `ids` of a split; nothing larger than one image is held."""
    branch, answer = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
    for position, index in enumerate(ids):
        source = preprocessing.source(dataset.image(split, int(index)))
        found = graphs.answer(source, preprocessing)
        branch[position], answer[position] = graphs.branches.index(found.branch), found.logits.argmax()
        if position % 50 == 49 or position + 1 == len(ids):
            progress(title, position + 1, len(ids))
    return TargetAnswers(branch, answer)
