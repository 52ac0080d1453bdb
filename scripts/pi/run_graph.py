"""One graph, warmed up and run once on one thread, between two marks that the instruction counter sees.

python run_graph.py GRAPH.onnx|GRAPH.tflite INPUTS.npz OUTPUT.npy [--seed N]

Inputs are drawn from the seed and written to INPUTS.npz where that file is not there yet, and read from it where it is. So
the same file runs in the guest and on this machine, on the same numbers. Needs numpy and the graph's engine.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

WARM_UP = 2  # ONNX Runtime plans its memory in the first run and uses the plan from the second on
MARK = 0x41544845  # known to instruction_counter.c

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def mark(tag: int) -> None:
    """A system call that every kernel refuses and that the counter takes for a mark."""
    with contextlib.suppress(OSError):
        os.getpriority(MARK, tag)


def onnx_graph(path: str) -> tuple[Shapes, Callable[[Arrays], np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {i.name: tuple(i.shape) for i in session.get_inputs()}
    return shapes, lambda inputs: session.run(None, inputs)[0]


def litert_graph(path: str) -> tuple[Shapes, Callable[[Arrays], np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    inputs = {i["name"]: i["index"] for i in interpreter.get_input_details()}
    output = interpreter.get_output_details()[0]["index"]

    def run(arrays: Arrays) -> np.ndarray:
        for name, array in arrays.items():
            interpreter.set_tensor(inputs[name], array)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(output))

    return {i["name"]: tuple(int(n) for n in i["shape"]) for i in interpreter.get_input_details()}, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shapes, run = (onnx_graph if args.graph.suffix == ".onnx" else litert_graph)(str(args.graph))
    if not args.inputs.exists():
        draw = np.random.RandomState(args.seed)
        np.savez(args.inputs, **{name: draw.randn(*shape).astype(np.float32) for name, shape in shapes.items()})
    with np.load(args.inputs) as stored:
        inputs = dict(stored)
    gc.disable()
    for _ in range(WARM_UP):
        run(inputs)
    mark(1)
    output = run(inputs)
    mark(2)
    np.save(args.output, output)


if __name__ == "__main__":
    main()
