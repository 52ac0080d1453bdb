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
from pathlib import Path

import numpy as np

WARM_UP = 2  # ONNX Runtime plans its memory in the first run and uses the plan from the second on
MARK = 0x41544845  # known to instruction_counter.c

Arrays = dict[str, np.ndarray]
Inputs = dict[str, tuple[tuple[int, ...], np.dtype]]
ONNX_DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(uint8)": np.dtype(np.uint8)}


def mark(tag: int) -> None:
    """A system call that every kernel refuses and that the counter takes for a mark."""
    with contextlib.suppress(OSError):
        os.getpriority(MARK, tag)


class OnnxGraph:
    """Inputs and output are bound before, so that a run is the engine's alone: the Python of `session.run` does not take the
    same number of instructions in every process."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._binding.bind_output(self._session.get_outputs()[0].name)
        self.inputs: Inputs = {i.name: (tuple(i.shape), ONNX_DTYPES[i.type]) for i in self._session.get_inputs()}

    def feed(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def output(self) -> np.ndarray:
        return np.array(self._binding.copy_outputs_to_cpu()[0])


class LitertGraph:
    def __init__(self, path: str) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=path, num_threads=1)
        self._interpreter.allocate_tensors()
        inputs = self._interpreter.get_input_details()
        self._inputs = {i["name"]: i["index"] for i in inputs}
        self._output = self._interpreter.get_output_details()[0]["index"]
        self.inputs: Inputs = {i["name"]: (tuple(int(n) for n in i["shape"]), np.dtype(i["dtype"])) for i in inputs}

    def feed(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._inputs[name], array)

    def run(self) -> None:
        self._interpreter.invoke()

    def output(self) -> np.ndarray:
        return np.array(self._interpreter.get_tensor(self._output))


def drawn(inputs: Inputs, seed: int) -> Arrays:
    """Noise for each input: float32 of variance 1, or every value that a pixel can have."""
    draw = np.random.RandomState(seed)
    return {
        name: draw.randn(*shape).astype(dtype) if dtype.kind == "f" else draw.randint(0, 256, shape).astype(dtype)
        for name, (shape, dtype) in inputs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    graph = (OnnxGraph if args.graph.suffix == ".onnx" else LitertGraph)(str(args.graph))
    if not args.inputs.exists():
        np.savez(args.inputs, **drawn(graph.inputs, args.seed))
    with np.load(args.inputs) as stored:
        inputs = dict(stored)
    gc.disable()
    for _ in range(WARM_UP):
        graph.feed(inputs)
        graph.run()
    graph.feed(inputs)
    mark(1)
    graph.run()
    mark(2)
    np.save(args.output, graph.output())


if __name__ == "__main__":
    main()
