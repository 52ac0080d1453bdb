"""One fixed-shape ONNX graph in ONNX Runtime on the CPU."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from athe_export.dependencies import installed
from athe_export.errors import BundleIntegrityError, MissingDependency, UsageError
from athe_export.preprocessing import GraphInput

REMEDY = 'pip install "athe-export[onnx]"'
_TOO_OLD = re.compile(r"[Oo]pset \d+ is under development|[Uu]nsupported model IR version|is not a registered function/op")


def onnxruntime_available() -> bool:
    return installed("onnxruntime")


class OnnxSession:
    """Runs a graph with one input and one output.

    Args:
        model: the serialised graph.
        threads: intra-op threads.

    Raises:
        MissingDependency: onnxruntime is not installed, broken, or too old for the graph's opset.
        BundleIntegrityError: not an ONNX graph.
        UsageError: less than one thread.
    """

    def __init__(self, model: bytes, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"{threads} threads cannot run a graph", where="threads", remedy="give 1 or more")
        try:
            import onnxruntime as ort
        except ImportError as err:
            raise MissingDependency(f"onnxruntime cannot be imported: {err}", where="target onnx", remedy=REMEDY) from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as err:  # onnxruntime raises pybind types of its own
            said = str(err).splitlines()[0]
            kind = MissingDependency if _TOO_OLD.search(said) else BundleIntegrityError
            raise kind(
                f"ONNX Runtime {ort.__version__} cannot load the graph: {said}",
                where="target onnx",
                remedy="upgrade onnxruntime to the version in the manifest's tools, or build the bundle again",
            ) from err
        self._input = self._session.get_inputs()[0]
        self._dtype = np.dtype(np.uint8 if self._input.type == "tensor(uint8)" else np.float32)
        self.input_shape = tuple(self._input.shape)
        self.output_shape = tuple(self._session.get_outputs()[0].shape)

    def run(self, image: GraphInput) -> npt.NDArray[np.float32]:
        """Output of pixels uint8 [1, size, size, 3] or, where the graph takes that, of float32 [1, 3, size, size].

        Raises:
            UsageError: another shape or dtype than the graph's.
        """
        if list(image.shape) != list(self._input.shape) or image.dtype != self._dtype:
            raise UsageError(
                f"the graph takes {self._dtype} {self._input.shape}, not {image.dtype} {list(image.shape)}",
                remedy="preprocess with athe_export.preprocessing and the manifest's parameters",
            )
        output: npt.NDArray[np.float32] = self._session.run(None, {self._input.name: image})[0]
        return output
