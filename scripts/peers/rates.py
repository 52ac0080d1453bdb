"""How fast this CPU multiplies matrices of a model's own shapes, in the engines themselves, and the floor that follows.

A floor is the time that a graph's multiplications alone take: each layer with weights at the best rate that any engine had
on a product of its own shape in the graph's precision, each product of attention at the best that any had on its shape in
float32; after the roofline of Williams et al. (2009) with its compute roof alone. What moves memory, normalises or activates
is not in it, so that no graph reaches it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from athe_export.bench.rows import PRECISIONS
from athe_export.preprocessing import Pixels
from athe_export.targets.litert.graph import LitertGraph
from peers.ours import ENGINES, held_graph
from peers.peer import RATES, Ask, Asked, Job, Row

Shape = tuple[int, int, int]  # rows, inputs, outputs of a product
Rates = Mapping[tuple[str, Shape | None], float]  # multiply-accumulates a second, by precision and shape
AS_TRAINED, DEPLOYED = "as trained", "deployed"  # forms of a graph: what peers are given, and what our own rows run
SHAPES = 24  # of a model at most, those that most of its multiplications are in


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of a graph by shape: of layers with weights, and of products of two activations (attention)."""

    layers: Mapping[Shape, int]
    attention: Mapping[Shape, int]


def seconds(products: Mapping[Shape, int], precision: str, rates: Rates) -> float:
    """What products take in a precision; those of a shape that was not measured go at the rate of None, the best of all."""
    best = rates[precision, None]
    return sum(macs / rates.get((precision, shape), best) for shape, macs in products.items())


def work_of(graph: LitertGraph) -> Work:
    """Read off a graph."""
    layers: Counter[Shape] = Counter()
    attention: Counter[Shape] = Counter()
    for op in (op for op in graph.ops if op.macs):
        shape = op.outputs[0].shape
        inputs = op.macs // math.prod(shape)
        if op.has_weight:
            layers[math.prod(shape[:-1]), inputs, shape[-1]] += op.macs
        else:  # a product for each head
            attention[shape[-2], inputs, shape[-1]] += op.macs
    return Work(dict(layers), dict(attention))


def works_of(job: Job) -> dict[tuple[str, str], Work]:
    """By graph and form. The deployed form is read off the graphs of our bundle and its controls, where they hold one."""
    works = {(g, AS_TRAINED): work_of(LitertGraph(g, "fp32", job.file(g, "tflite").read_bytes())) for g in job.graphs}
    for graph in job.graphs:
        held = (held_graph(job, graph, precision) for precision in PRECISIONS)
        if content := next(filter(None, held), None):
            works[graph, DEPLOYED] = work_of(LitertGraph(graph, "", content))
    return works


def products_of(works: Iterable[Work]) -> list[tuple[str, Shape]]:
    """Precision and shape of those that most of the multiplications of all graphs are in, the heaviest first."""
    layers: Counter[Shape] = Counter()
    attention: Counter[Shape] = Counter()
    for work in works:
        layers.update(work.layers)
        attention.update(work.attention)
    shapes = [shape for shape, _ in layers.most_common(SHAPES)]
    only_float = [shape for shape, _ in attention.most_common(SHAPES) if shape not in shapes]
    return [*((p, shape) for shape in shapes for p in ("fp32", "int8")), *(("fp32", shape) for shape in only_float)]


def rate_rows(products: Iterable[tuple[str, Shape]]) -> list[Row]:
    """Each product in each engine."""
    return [Row(RATES, f"{engine} {p}", p, "x".join(map(str, s))) for p, s in products for engine in ENGINES.values()]


def shape_of(row: Row) -> Shape:
    rows, inputs, outputs = (int(side) for side in row.graph.split("x"))
    return rows, inputs, outputs


def open_product(row: Row) -> Ask:
    """A product, ready to be run; what is asked with is not looked at."""
    run = (_litert if row.peer.startswith("LiteRT") else _onnx)(shape_of(row), row.precision)
    run()

    def ask(_: Pixels) -> Asked:
        start = time.perf_counter()
        run()
        return Asked(np.zeros((1, 1), np.float32), 0.0, time.perf_counter() - start)

    return ask


def _onnx(shape: Shape, precision: str) -> Any:
    """MatMul, or MatMulInteger of unsigned activations and signed weights, whose sums are left as they are."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    rows, inputs, outputs = shape
    generator, kind = np.random.default_rng(0), np.float32 if precision == "fp32" else np.uint8
    weights = generator.integers(-99, 99, (inputs, outputs)).astype(np.float32 if precision == "fp32" else np.int8)
    dtypes = (TensorProto.FLOAT, TensorProto.FLOAT) if precision == "fp32" else (TensorProto.UINT8, TensorProto.INT32)
    node = helper.make_node("MatMul" if precision == "fp32" else "MatMulInteger", ["a", "w"], ["b"], "product")
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", dtypes[0], (rows, inputs))],
        [helper.make_tensor_value_info("b", dtypes[1], (rows, outputs))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = generator.integers(0, 99, (rows, inputs)).astype(kind)
    return lambda: session.run(None, {"a": given})


def _litert(shape: Shape, precision: str) -> Any:
    """A fully connected layer through XNNPACK; in int8 its input and output are int8 too."""
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer

    rows, inputs, outputs = shape
    example = (torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0)),)
    with torch.no_grad():
        content = bytes(litert_torch.convert(torch.nn.Linear(inputs, outputs).eval(), example).model_content())
    if precision == "int8":
        job = quantizer.Quantizer(content)
        for kind in ("FULLY_CONNECTED", "INPUT", "OUTPUT"):
            job.add_static_config(".*", qtyping.TFLOperationName(kind), 8, 8)
        (name,) = (s.signatureKey.decode() for s in job._float_model.signatureDefs)
        ranges = job.calibrate({name: [{"args_0": example[0].numpy()}]})
        content = bytes(job.quantize(ranges, enable_progress_report=False).quantized_model)
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    if (given["dtype"] == np.int8) != (precision == "int8"):
        raise ValueError(f"the layer's input became {np.dtype(given['dtype'])}")
    interpreter.set_tensor(given["index"], np.ones(given["shape"], given["dtype"]))
    return interpreter.invoke
