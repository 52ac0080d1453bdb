"""ExecuTorch with the XNNPACK delegate: float, and int8 by its own quantizer."""

from __future__ import annotations

from typing import Any

from athe_export.preprocessing import Tensor
from peers.peer import Job, Logits, Peer, Run
from peers.torch_peers import load_module


def fp32(job: Job, graph: str) -> Run:
    return _lowered(load_module(job, graph), job, graph, "fp32.pte")


def int8(job: Job, graph: str) -> Run:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    exported = torch.export.export(load_module(job, graph), _example(job)).module()
    prepared = prepare_pt2e(exported, XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))
    with torch.no_grad():
        for image in job.calibration(graph):
            prepared(torch.from_numpy(image))
    return _lowered(convert_pt2e(prepared), job, graph, "int8.pte")


def _example(job: Job) -> tuple[Any, ...]:
    import torch

    return (torch.zeros(1, 3, job.size, job.size),)


def _lowered(module: Any, job: Job, graph: str, ending: str) -> Run:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    with torch.no_grad():
        program = torch.export.export(module, _example(job))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    job.file(graph, ending).write_bytes(lowered.buffer)
    portable_lib._unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(job.file(graph, ending)).load_method("forward")

    def run(image: Tensor) -> Logits:
        return method.execute([torch.from_numpy(image)])[0].numpy()

    return run


PEERS = (
    Peer("ExecuTorch XNNPACK fp32", "fp32", ("torch", "executorch"), fp32),
    Peer("ExecuTorch XNNPACK int8", "int8", ("torch", "torchao", "executorch"), int8),
)
