"""OpenVINO: the ONNX graph in float32 (its default would be bfloat16 where the CPU has it), and quantized by NNCF."""

from __future__ import annotations

from typing import Any

from athe_export.preprocessing import Tensor
from peers.peer import Job, Logits, Peer, Run


def f32(job: Job, graph: str) -> Run:
    import openvino

    return _run_of(openvino.Core().read_model(job.file(graph, "onnx")))


def int8(job: Job, graph: str) -> Run:
    import nncf
    import openvino

    images = list(job.calibration(graph))
    model = openvino.Core().read_model(job.file(graph, "onnx"))
    # the transformer scheme is what NNCF's documentation asks for of such models
    scheme = nncf.ModelType.TRANSFORMER
    return _run_of(nncf.quantize(model, nncf.Dataset(images), model_type=scheme, subset_size=len(images)))


def _run_of(model: Any) -> Run:
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()

    def run(image: Tensor) -> Logits:
        request.infer({0: image}, share_inputs=True)
        return request.get_output_tensor(0).data

    return run


PEERS = (
    Peer("OpenVINO f32", "fp32", ("openvino",), f32),
    Peer("OpenVINO int8, NNCF", "int8", ("openvino", "nncf"), int8),
)
