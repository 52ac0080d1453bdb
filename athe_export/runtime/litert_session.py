"""One fixed-shape TFLite graph in LiteRT with XNNPACK on the CPU, and what of a graph XNNPACK takes."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import os
import re
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from athe_export.dependencies import installed
from athe_export.errors import BundleIntegrityError, EnvironmentFailure, MissingDependency, UsageError
from athe_export.preprocessing import GraphInput

REMEDY = 'pip install "athe-export[litert]"'
_ENGINES = (("ai_edge_litert", "ai_edge_litert.interpreter"), ("tflite_runtime", "tflite_runtime.interpreter"))
_DELEGATE = "DELEGATE"
_BROKEN = (ValueError, RuntimeError, IndexError, SystemError)  # what a runtime raises of a file that is none
# A model of one empty subgraph and one empty buffer. One that is refused would not do: tflite_runtime under numpy 2 says
# so in good order, and fails only where it has an interpreter to return.
_EMPTY_MODEL = bytes.fromhex(
    "1800000054464c3300000e00140010000c000800000004000e000000100000001c0000005000000003000000010000000800000004000400"
    "0400000001000000100000000c00140010000c00080004000c00000010000000100000001000000010000000000000000000000000000000"
    "0000000000000000"
)
_UNKNOWN_OP = re.compile(
    r"builtin op(?:code|erator)? '(?P<op>\w+)'(?: version '(?P<version>\d+)')?"
    r"|unresolved custom op: (?P<custom>\w+)|builtin_code out of range: (?P<number>\d+)"
)


class Delegation(NamedTuple):
    """How XNNPACK shares out a graph: number of its partitions, and every other op as `op_type output_tensor`."""

    partitions: int
    outside: tuple[str, ...]


def pixels_as_int8(image: GraphInput) -> npt.NDArray[np.int8] | npt.NDArray[np.float32]:
    """pixel - 128, of uint8: the same bits with the highest turned over; a float32 image as it is."""
    return (image ^ np.uint8(128)).view(np.int8) if image.dtype == np.uint8 else image  # type: ignore[operator,return-value]


def litert_is_outdated() -> bool:
    """Whether tflite_runtime is all there is: most int8 layers stay outside its XNNPACK."""
    return installed("tflite_runtime") and not installed("ai_edge_litert")


def litert_unavailable() -> str | None:
    """Why no TFLite graph can run here; None where one can.

    An interpreter is created to find out: tflite_runtime imports under numpy 2 and fails only then.
    """
    try:
        _interpreter_class()
    except MissingDependency as err:
        return f"{err.what}; {err.remedy}"
    return None


class LitertSession:
    """Runs a graph with one input and one output through XNNPACK.

    `partitions` is how many parts of the graph XNNPACK runs.

    Args:
        model: the .tflite file's content.
        threads: of XNNPACK.

    Raises:
        MissingDependency: no LiteRT runtime is installed, it cannot create an interpreter here, or it is too old for
            one of the graph's ops.
        BundleIntegrityError: not a TFLite graph, or not one of one input and one output.
        EnvironmentFailure: this runtime has no XNNPACK.
        UsageError: less than one thread.
    """

    def __init__(self, model: bytes, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"{threads} threads cannot run a graph", where="threads", remedy="give 1 or more")
        engine, interpreter = _interpreter_class()
        try:
            with native_stderr_muted():
                self._interpreter = interpreter(model_content=model, num_threads=threads)
                self._interpreter.allocate_tensors()
            self.partitions = _partitions(self._interpreter)
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        except _BROKEN as err:
            raise _unusable(engine, str(err)) from err
        if len(inputs) != 1 or len(outputs) != 1:
            raise _unusable(engine, f"it has {len(inputs)} inputs and {len(outputs)} outputs, not one of each")
        if not self.partitions:
            raise EnvironmentFailure(
                f"{engine} runs this graph without XNNPACK, many times slower than it was built for",
                where="target litert",
                remedy=f"install a runtime that has it ({REMEDY}), or use --target onnx where the bundle has it",
            )
        self._input, self._output = inputs[0], outputs[0]["index"]
        scaled = self._input["quantization"]
        if self._input["dtype"] == np.int8 and scaled != (1.0, -128):
            raise _unusable(engine, f"its int8 input has scale and zero point {scaled}, which are not those of pixels")
        self.input_shape = tuple(int(d) for d in inputs[0]["shape"])
        self.output_shape = tuple(int(d) for d in outputs[0]["shape"])

    def run(self, image: GraphInput) -> npt.NDArray[np.float32]:
        """Output of pixels uint8 [1, size, size, 3] or, where the graph takes that, of float32 [1, 3, size, size].

        Raises:
            UsageError: another shape or dtype than the graph's.
        """
        pixels = self._input["dtype"] == np.int8
        dtype = np.dtype(np.uint8 if pixels else self._input["dtype"])
        if image.shape != self.input_shape or image.dtype != dtype:
            raise UsageError(
                f"the graph takes {dtype} {list(self.input_shape)}, not {image.dtype} {list(image.shape)}",
                remedy="preprocess with athe_export.preprocessing and the manifest's parameters",
            )
        self._interpreter.set_tensor(self._input["index"], pixels_as_int8(image))
        try:
            self._interpreter.invoke()
        except RuntimeError as err:
            raise _unusable("LiteRT", str(err)) from err
        output: npt.NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return output

    def delegation(self) -> Delegation:
        """What XNNPACK took: each of its nodes is followed from its outputs back to its inputs."""
        names = {t["index"]: t["name"] for t in self._interpreter.get_tensor_details()}
        ops = self._interpreter._get_ops_details()
        partitions = [op for op in ops if op["op_name"] == _DELEGATE]
        plain = [op for op in ops if op["op_name"] != _DELEGATE]
        maker = {int(tensor): op for op in plain for tensor in op["outputs"]}
        inside: set[int] = set()
        for partition in partitions:
            ends = {int(t) for t in partition["inputs"]}
            todo = [int(t) for t in partition["outputs"]]
            while todo:
                op = maker.get(todo[-1]) if todo[-1] not in ends else None
                todo.pop()
                if op is not None and op["index"] not in inside:
                    inside.add(op["index"])
                    todo += [int(t) for t in op["inputs"]]
        outside = [f"{op['op_name']} {names[int(op['outputs'][0])]}" for op in plain if op["index"] not in inside]
        return Delegation(len(partitions), tuple(outside))


_MUTING = threading.RLock()


@contextlib.contextmanager
def native_stderr_muted() -> Iterator[None]:
    """Drops what native code writes to file descriptor 2, such as LiteRT's notice of every delegate it creates.

    What goes wrong comes as an exception; should native code abort the process, faulthandler still says where. One thread
    at a time, since the descriptor is the whole process's.
    """
    with _MUTING, contextlib.ExitStack() as undo:
        try:
            kept = os.dup(2)
        except OSError:  # there is no stderr to mute
            yield
            return
        undo.callback(os.close, kept)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        undo.callback(os.close, nowhere)
        if not faulthandler.is_enabled():
            faulthandler.enable(kept)
            undo.callback(faulthandler.disable)
        undo.callback(os.dup2, kept, 2)
        os.dup2(nowhere, 2)
        yield


def _partitions(interpreter: Any) -> int:
    """By the ops' names alone: everything that can be known of each op takes longer to gather than opening the graph."""
    ops = interpreter._interpreter
    return sum(ops.NodeName(i) == _DELEGATE for i in range(ops.NumNodes()))


def _interpreter_class() -> tuple[str, Any]:
    """Name and Interpreter class of the first runtime that is installed, tried out.

    Raises:
        MissingDependency: none is installed, or it does not work here.
    """
    found = next(((name, module) for name, module in _ENGINES if installed(name)), None)
    if found is None:
        raise MissingDependency("no LiteRT runtime (ai_edge_litert) is installed", where="target litert", remedy=REMEDY)
    name, module = found
    try:
        with native_stderr_muted():
            interpreter = importlib.import_module(module).Interpreter
            _try(interpreter)
    except Exception as err:  # SystemError, AttributeError or ImportError, by the versions that clash
        raise MissingDependency(
            f"{name} is installed and cannot create an interpreter under numpy {np.__version__}: {_first_line(err)}",
            where="target litert",
            remedy=f'{REMEDY}, or, where tflite_runtime has to stay, pip install "numpy<2"',
        ) from None
    return name, interpreter


@functools.cache
def _try(interpreter: Any) -> None:
    """Creates an interpreter; one class need not show twice that it can."""
    interpreter(model_content=_EMPTY_MODEL)


def _unusable(engine: str, said: str) -> BundleIntegrityError | MissingDependency:
    op = _UNKNOWN_OP.search(said)
    if op is not None:
        name = op["op"] or op["custom"] or f"number {op['number']}"
        version = f" version {op['version']}" if op["version"] else ""
        return MissingDependency(
            f"{engine} is too old for this graph: it does not know op {name}{version}",
            where="target litert",
            remedy=f"install the version in the manifest's tools ({REMEDY}), or use --target onnx where the bundle has it",
        )
    return BundleIntegrityError(
        f"{engine} cannot load the graph: {said.strip().splitlines()[0] if said.strip() else 'it gives no reason'}",
        where="target litert",
        remedy="copy the bundle again; if that does not help, install ai-edge-litert in the version of the manifest's tools",
    )


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]
