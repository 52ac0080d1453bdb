"""torch itself: the module as it was trained, and compiled by inductor."""

from __future__ import annotations

from typing import Any

from athe_export.preprocessing import Tensor
from peers.peer import Job, Logits, Peer, Run


def load_module(job: Job, graph: str) -> Any:
    """The graph's torch module, on one thread."""
    import torch

    torch.set_num_threads(1)
    return torch.load(job.file(graph, "pt"), weights_only=False)  # written by this run


def run_of(module: Any) -> Run:
    """A torch module as numpy sees it."""
    import torch

    def run(image: Tensor) -> Logits:
        with torch.inference_mode():
            return module(torch.from_numpy(image)).numpy()

    return run


def eager(job: Job, graph: str) -> Run:
    return run_of(load_module(job, graph))


def compiled(job: Job, graph: str) -> Run:
    import torch

    run = run_of(torch.compile(load_module(job, graph), fullgraph=True, dynamic=False))
    run(next(job.calibration(graph)))  # compiles: what cannot be compiled says so here, not while times are taken
    return run


PEERS = (
    Peer("torch eager fp32", "fp32", ("torch",), eager),
    Peer("torch.compile fp32", "fp32", ("torch",), compiled),
)
