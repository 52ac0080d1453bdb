"""What a deployed graph's choice of tokens comes to: held against torch's, and tried out in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from athe_export.bundle.reader import Bundle
from athe_export.data.source import Dataset, Progress
from athe_export.model_spec import FUSING
from athe_export.parity.answers import TargetAnswers, TokenFindings
from athe_export.parity.hops import Key
from athe_export.preprocessing import Preprocessing
from athe_export.reference import TorchReference, TracedReference
from athe_export.runtime.engines import ENGINES, Session
from athe_export.runtime.predictor import preprocessing_of
from athe_export.targets.litert.tokens import token_graphs as litert_token_graphs
from athe_export.targets.onnx.tokens import token_graphs as onnx_token_graphs

TOKEN_IMAGES = 500  # of each branch, on which overlap is measured; a changed image is looked at wherever it stands
_CUT: dict[str, Callable[[bytes], tuple[bytes, ...]]] = {"onnx": onnx_token_graphs, "litert": litert_token_graphs}
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GateImages:
    """The gate's images, their reference, and torch to try something out on them."""

    dataset: Dataset
    split: str
    traced: TracedReference
    torch: TorchReference


def measure_tokens(
    bundle: Bundle, system: Key, found: TargetAnswers, images: GateImages, progress: Progress
) -> TokenFindings:
    """Runs each branch's graph of a system up to its prune stages, by `token_graphs`.

    A choice is decisive for an image whose answer changed though the router agreed, if torch gives another answer too
    when it keeps the tokens that the graph has chosen.
    """
    routed, answer = images.traced.routed.branch, images.traced.routed.answer
    overlap: dict[str, float] = {}
    why: dict[str, str] = {}
    counts: dict[str, int] = {}
    decisive = np.zeros(len(routed), np.bool_)
    for index, branch in enumerate(bundle.manifest.branches):
        entry = bundle.manifest.graphs_of(*system)[branch.name]
        graphs = _CUT[system[0]](bundle.graph(entry)) if branch.prune else ()
        own = np.flatnonzero(routed == index)
        if not branch.prune or len(graphs) != len(branch.prune) or not len(own):
            why[branch.name] = _reason(len(graphs), len(branch.prune))
            continue
        sampled = own[:TOKEN_IMAGES]
        changed = own[(found.branch[own] == index) & (found.answer[own] != answer[own])]
        positions = np.union1d(sampled, changed)
        chooser = _Chooser(tuple(map(ENGINES[system[0]], graphs)), preprocessing_of(bundle.manifest))
        chosen = [chooser.tokens(images, int(p)) for p in positions]
        fused = branch.scorer in FUSING
        remaining = {p: _remaining(stages, fused) for p, stages in zip(positions.tolist(), chosen, strict=True)}
        shared = [len(np.intersect1d(remaining[p], _kept(images, p))) / len(remaining[p]) for p in sampled.tolist()]
        overlap[branch.name], counts[branch.name] = float(np.mean(shared)), len(sampled)
        if len(changed):
            told = [chosen[int(np.searchsorted(positions, p))] for p in changed]
            stages = [np.stack(stage) for stage in zip(*told, strict=True)]
            sources = [chooser.preprocessing.source(_image(images, int(p))) for p in changed]
            decisive[changed] = images.torch.answers_with_tokens(index, sources, stages) != answer[changed]
        progress(f"{' '.join(system)} chosen tokens", index + 1, len(bundle.manifest.branches))
    return TokenFindings(overlap, why, counts, decisive)


@dataclass(frozen=True)
class _Chooser:
    """The cut graphs of one branch, a prune stage each."""

    stages: tuple[Session, ...]
    preprocessing: Preprocessing

    def tokens(self, images: GateImages, position: int) -> tuple[Indices, ...]:
        """What each stage chooses of the patches that reach it, int64 [k]."""
        source = self.preprocessing.source(_image(images, position))
        given = self.preprocessing.graph_input(source, self.stages[0].input_shape)
        return tuple(stage.run(given).reshape(-1).astype(np.int64) for stage in self.stages)


def _image(images: GateImages, position: int) -> npt.NDArray[np.uint8]:
    return images.dataset.image(images.split, int(images.traced.reference.ids[position]))


def _kept(images: GateImages, position: int) -> Indices:
    kept = images.traced.kept[position]
    assert kept is not None
    return kept


def _remaining(stages: tuple[Indices, ...], fused: bool) -> Indices:
    """The patches that are left after the last stage: each stage counts among those that the one before has left.

    With `fused`, the token that stage n has fused comes last there; it is -n, as in `tokens.Trace`.
    """
    left = stages[0]
    for number, stage in enumerate(stages[1:], 1):
        left = (np.append(left, -number) if fused else left)[stage]
    return left


def _reason(graphs: int, stages: int) -> str:
    if not stages:
        return "the branch prunes no tokens"
    if graphs != stages:
        return f"the graph chooses tokens {graphs} times where the branch prunes {stages} times"
    return "no image was routed to it"
