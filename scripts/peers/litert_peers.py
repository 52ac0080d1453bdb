"""LiteRT: the fp32 graph, every op in int8 with the library's own calibration, and int8 weights alone (dynamic)."""

from __future__ import annotations

from typing import Any

from athe_export.runtime.litert_session import LitertSession
from peers.peer import Job, Peer, Run


def fp32(job: Job, graph: str) -> Run:
    return LitertSession(job.file(graph, "tflite").read_bytes()).run


def every_op(job: Job, graph: str) -> Run:
    from ai_edge_quantizer import qtyping, quantizer

    quantize = quantizer.Quantizer(job.file(graph, "tflite").read_bytes())
    quantize.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
    _float_ends(quantize)
    (name,) = (s.signatureKey.decode() for s in quantize._float_model.signatureDefs)
    ranges = quantize.calibrate({name: [{"image": image} for image in job.calibration(graph)]})
    return LitertSession(bytes(quantize.quantize(ranges, enable_progress_report=False).quantized_model)).run


def dynamic(job: Job, graph: str) -> Run:
    from ai_edge_quantizer import qtyping, quantizer

    quantize = quantizer.Quantizer(job.file(graph, "tflite").read_bytes())
    quantize.add_dynamic_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8)
    return LitertSession(bytes(quantize.quantize(enable_progress_report=False).quantized_model)).run


def _float_ends(quantize: Any) -> None:
    """Images and logits stay float32, as in every other peer."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        quantize.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)


PEERS = (
    Peer("LiteRT fp32", "fp32", ("ai_edge_litert",), fp32),
    Peer("LiteRT int8, every op", "int8", ("ai_edge_litert", "ai_edge_quantizer"), every_op),
    Peer("LiteRT int8 dynamic", "int8", ("ai_edge_litert", "ai_edge_quantizer"), dynamic),
)
