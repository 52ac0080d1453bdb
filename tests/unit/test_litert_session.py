"""One TFLite graph in LiteRT: what it answers, and one clear error for whatever cannot be run."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from athe_export.errors import AtheExportError, BundleIntegrityError, EnvironmentFailure, MissingDependency, UsageError
from athe_export.preprocessing import Pixels
from athe_export.runtime.litert_session import LitertSession, litert_unavailable, native_stderr_muted
from athe_export.targets.litert.graph import LitertGraph, pack, unpack
from tests.tools import blocked_python, environment, graph_content, python

Graphs = dict[str, LitertGraph]
OPS = schema.BuiltinOperator
BLOCKED = ("ai_edge_litert", "tflite_runtime")


def with_op(graph: LitertGraph, kind: int, **changes: Any) -> bytes:
    """The graph's file with another operator code in the place of `kind`."""
    model = unpack(graph.content)
    for code in (c for c in model.operatorCodes if max(c.builtinCode, c.deprecatedBuiltinCode) == kind):
        for field, value in changes.items():
            setattr(code, field, value)
    return pack(model)


def refused(model: bytes) -> AtheExportError:
    with pytest.raises(AtheExportError) as caught:
        LitertSession(model)
    assert caught.value.where == "target litert" and caught.value.remedy
    assert "\n" not in caught.value.what
    return caught.value


# what it answers


@pytest.mark.parametrize("role", ["router", "simple"])
def test_more_threads_give_the_same_answer(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...], role: str) -> None:
    sessions = [LitertSession(litert_graphs[role].content, threads) for threads in (1, 2, 4)]
    for image in real_pixels[:6]:
        one, *others = [session.run(image) for session in sessions]
        assert all(np.allclose(one, other, atol=1e-6) for other in others)


def test_an_answer_stays_as_it_is_when_the_next_image_is_run(litert_graphs: Graphs, real_pixels: tuple[Pixels, ...]) -> None:
    """The engine writes every answer to the same memory."""
    session = LitertSession(litert_graphs["simple"].content)
    first = session.run(real_pixels[0])
    before = first.copy()
    assert not np.array_equal(session.run(real_pixels[1]), first)
    assert np.array_equal(first, before)
    assert np.array_equal(session.run(real_pixels[0]), before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((1, 32, 31, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 32, 32, 3)),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 32, 32, 3), np.int8),
    ],
    ids=["a batch", "not square", "no batch", "channels first", "float64", "float32", "int8"],
)
def test_another_shape_or_dtype_is_refused_with_the_right_ones(litert_graphs: Graphs, image: np.ndarray) -> None:
    session = LitertSession(litert_graphs["simple"].content)
    with pytest.raises(UsageError, match=r"the graph takes uint8 \[1, 32, 32, 3\], not") as caught:
        session.run(image)
    assert f"{image.dtype} {list(image.shape)}" in caught.value.what and "preprocess" in caught.value.remedy


# what it refuses


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 5000, b"<html>not found</html>", b'{"graph": []}'], ids=["empty", "zeros", "html", "json"]
)
def test_a_file_that_is_no_tflite_graph_is_one_clear_error(content: bytes) -> None:
    error = refused(content)
    assert isinstance(error, BundleIntegrityError)
    assert error.what.startswith("ai_edge_litert cannot load the graph") and "copy the bundle again" in error.remedy


def _also_give_the_input(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.outputs = [*graph.outputs, *graph.inputs]


def _take_nothing(model: Any) -> None:
    model.subgraphs[0].inputs = []


@pytest.mark.parametrize(
    ("change", "said"),
    [(_also_give_the_input, "1 inputs and 2 outputs"), (_take_nothing, "cannot load the graph")],
    ids=["two outputs", "no input"],
)
def test_a_graph_of_other_ends_than_one_image_and_one_answer_is_refused(
    litert_graphs: Graphs, change: Callable[[Any], None], said: str
) -> None:
    model = unpack(litert_graphs["router"].content)
    change(model)
    error = refused(pack(model))
    assert isinstance(error, BundleIntegrityError) and said in error.what


def test_an_onnx_graph_is_no_tflite_graph(built_both: Path) -> None:
    assert isinstance(refused(graph_content(built_both, "onnx/simple.int8.onnx")), BundleIntegrityError)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_graph_is_refused_wherever_it_ends(litert_graphs: Graphs, share: float) -> None:
    content = litert_graphs["complex"].content
    assert isinstance(refused(content[: int(share * len(content))]), BundleIntegrityError)
    assert isinstance(refused(content[:-1]), BundleIntegrityError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 99}, "op SOFTMAX version 99"),
        ({"builtinCode": OPS.STABLEHLO_CBRT, "deprecatedBuiltinCode": 127}, "op STABLEHLO_CBRT version 1"),
        ({"builtinCode": 250, "deprecatedBuiltinCode": 127}, "op number 250"),
        ({"builtinCode": OPS.CUSTOM, "deprecatedBuiltinCode": OPS.CUSTOM, "customCode": b"Erf"}, "op Erf"),
    ],
    ids=["a newer version", "an op without a kernel", "a number of a newer schema", "a custom op"],
)
def test_an_op_that_the_runtime_does_not_know_is_named(litert_graphs: Graphs, changes: dict[str, Any], said: str) -> None:
    error = refused(with_op(litert_graphs["simple"], OPS.SOFTMAX, **changes))
    assert isinstance(error, MissingDependency)
    assert said in error.what and "too old" in error.what
    assert 'pip install "athe-export[litert]"' in error.remedy and "--target onnx" in error.remedy


def test_a_runtime_without_xnnpack_is_refused(litert_graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real interpreter, asked to leave its delegates out: what a build of it without XNNPACK does."""
    engine = importlib.import_module("ai_edge_litert.interpreter")
    without = functools.partial(
        engine.Interpreter, experimental_op_resolver_type=engine.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    monkeypatch.setattr(engine, "Interpreter", without)
    error = refused(litert_graphs["simple"].content)
    assert isinstance(error, EnvironmentFailure)
    assert "without XNNPACK" in error.what and "--target onnx" in error.remedy


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_no_fault_of_the_graph(litert_graphs: Graphs, threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        LitertSession(litert_graphs["router"].content, threads)


# silence


_OPEN = """
import sys
from pathlib import Path
from athe_export.runtime.litert_session import LitertSession
print(LitertSession(Path(sys.argv[1]).read_bytes()).delegation().partitions)
"""


def test_nothing_is_written_to_stderr_not_even_by_native_code(built_both: Path) -> None:
    graph = built_both / "litert/complex.fp32.tflite"
    done = python(_OPEN, graph)
    assert (done.stdout, done.stderr) == ("2\n", "")
    loud = "from ai_edge_litert.interpreter import Interpreter; import sys; Interpreter(sys.argv[1]).allocate_tensors()"
    assert "XNNPACK" in python(loud, graph).stderr, "there is no notice any more, so nothing was muted"


def test_a_process_without_stderr_runs_graphs(built_both: Path) -> None:
    line = ["sh", "-c", '"$0" -c "$1" "$2" 2>&-', sys.executable, _OPEN, str(built_both / "litert/complex.fp32.tflite")]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (0, "2\n")


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_stderr_is_heard_again_after_a_graph_was_refused(capfd: pytest.CaptureFixture[str]) -> None:
    descriptors = _open_descriptors()
    for _ in range(3):
        with contextlib.suppress(ValueError), native_stderr_muted():
            os.write(2, b"unheard")
            raise ValueError
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
    assert _open_descriptors() == descriptors, "file descriptors were left open"


# which runtime


_SAY = """
from athe_export.runtime.litert_session import litert_unavailable
print(litert_unavailable())
"""
# The package that the blocked one succeeded, under its old name: its code is the real runtime's.
_OLD_NAME = """
import sys
block = sys.meta_path.pop(0)
from ai_edge_litert.interpreter import Interpreter
sys.meta_path.insert(0, block)
for name in [n for n in sys.modules if n.split(".")[0] == "ai_edge_litert"]:
    del sys.modules[name]
"""
# as tflite_runtime 2.14 does under numpy 2, once there is an interpreter to return
_BROKEN = """
class Interpreter:
    def __init__(self, model_content=None, num_threads=1):
        if model_content[4:8] != b"TFL3":
            raise ValueError("The model is not a valid Flatbuffer buffer")
        raise SystemError("<built-in method CreateWrapperFromBuffer> returned a result with an exception set")
"""


@pytest.fixture
def old_runtime(tmp_path: Path) -> Callable[[str], str]:
    """Makes a package tflite_runtime; gives the code that puts it on a process's path."""

    def make(interpreter: str) -> str:
        package = tmp_path / "site" / "tflite_runtime"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "interpreter.py").write_text(interpreter)
        return f"import sys; sys.path.insert(0, {str(package.parent)!r})\n"

    return make


def test_here_litert_is_available() -> None:
    assert litert_unavailable() is None


def test_without_a_runtime_the_reason_holds_the_command() -> None:
    done = blocked_python(_SAY, BLOCKED)
    assert done.stdout == 'no LiteRT runtime (ai_edge_litert) is installed; pip install "athe-export[litert]"\n', done.stderr


def test_a_runtime_that_imports_and_cannot_create_an_interpreter_is_unavailable(
    old_runtime: Callable[[str], str],
) -> None:
    done = blocked_python(old_runtime(_BROKEN) + _SAY, ["ai_edge_litert"])
    assert done.stdout.startswith(
        f"tflite_runtime is installed and cannot create an interpreter under numpy {np.__version__}: "
    )
    assert "returned a result with an exception set" in done.stdout
    assert 'pip install "athe-export[litert]"' in done.stdout and 'pip install "numpy<2"' in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "interpreter",
    ["raise ImportError('libpython: wrong ELF class')", "import no_such_module", "raise AttributeError('x')", ""],
)
def test_a_runtime_that_does_not_even_import_is_unavailable(old_runtime: Callable[[str], str], interpreter: str) -> None:
    done = blocked_python(old_runtime(interpreter) + _SAY, ["ai_edge_litert"])
    assert done.returncode == 0 and "cannot create an interpreter" in done.stdout, done.stderr


def test_where_tflite_runtime_is_what_the_device_has_it_is_used(old_runtime: Callable[[str], str], built_both: Path) -> None:
    code = old_runtime(_OLD_NAME) + _SAY + _OPEN
    done = blocked_python(code, ["ai_edge_litert"], built_both / "litert/complex.int8.tflite")
    assert done.stdout == "None\n2\n", done.stderr
    refused = blocked_python(code, ["ai_edge_litert"], built_both / "labels.txt")
    assert "tflite_runtime cannot load the graph" in refused.stderr
