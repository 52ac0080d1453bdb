"""Intel neural-compressor: its PT2E path with the default configuration, compiled as its documentation has it."""

from __future__ import annotations

from peers.peer import Job, Peer, Run
from peers.torch_peers import load_module, run_of


def pt2e(job: Job, graph: str) -> Run:
    import torch
    import torch._inductor.config as inductor
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import INT8StaticQuantConfig, convert, prepare

    inductor.freezing = True  # without it weights are quantized anew for every image
    example = (torch.zeros(1, 3, job.size, job.size),)
    with torch.no_grad():
        exported = export(load_module(job, graph), example)
        prepared = prepare(exported, INT8StaticQuantConfig())
        for image in job.calibration(graph):
            prepared(torch.from_numpy(image))
        run = run_of(torch.compile(convert(prepared), dynamic=False))
    run(next(job.calibration(graph)))
    return run


PEERS = (Peer("neural-compressor PT2E int8", "int8", ("torch", "neural_compressor"), pt2e),)
