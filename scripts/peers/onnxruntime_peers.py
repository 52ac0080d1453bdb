"""ONNX Runtime: the fp32 graph, and the same through its own quantizers with no argument beyond those they need."""

from __future__ import annotations

from athe_export.runtime.onnx_session import OnnxSession
from peers.peer import Job, Peer, Run


def fp32(job: Job, graph: str) -> Run:
    return OnnxSession(job.file(graph, "onnx").read_bytes()).run


def static(job: Job, graph: str) -> Run:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._images = job.calibration(graph)

        def get_next(self) -> dict[str, object] | None:
            return next(({"image": image} for image in self._images), None)

    result = job.file(graph, "static.onnx")
    quantize_static(job.file(graph, "onnx"), result, Images())
    return OnnxSession(result.read_bytes()).run


def dynamic(job: Job, graph: str) -> Run:
    from onnxruntime.quantization import quantize_dynamic

    result = job.file(graph, "dynamic.onnx")
    quantize_dynamic(job.file(graph, "onnx"), result)
    return OnnxSession(result.read_bytes()).run


PEERS = (
    Peer("ONNX Runtime fp32", "fp32", ("onnxruntime",), fp32),
    Peer("ONNX Runtime int8 static, defaults", "int8", ("onnxruntime", "onnx"), static),
    Peer("ONNX Runtime int8 dynamic, defaults", "int8", ("onnxruntime", "onnx"), dynamic),
)
