"""Which engine is there: a bundle for two targets where one of them, or none, can run; nothing unrun is called passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from PIL import Image

from athe_export.data.shapes import Shapes
from athe_export.targets.litert.graph import pack, unpack
from tests.tools import cli, command, error_of, replace_file, require_one_message

LITERT = ("ai_edge_litert", "tflite_runtime")
ENGINES = {"onnx": ("onnxruntime",), "litert": LITERT}
OTHER = {"onnx": "litert", "litert": "onnx"}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(Shapes().image("test", 4)).resize((120, 90)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root; generated images need nothing of it."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def files_of(bundle: Path, target: str) -> set[str]:
    return {p.relative_to(bundle).as_posix() for p in (bundle / target).iterdir()}


@pytest.mark.parametrize("missing", ["onnx", "litert"])
def test_verify_passes_on_the_other_target_and_lists_the_graphs_it_did_not_run(
    built_both: Path, data: Path, missing: str
) -> None:
    found = command("verify", built_both, "--data-root", data, "--json", blocked=ENGINES[missing])
    assert found.code == 0, found.err
    document, here = found.document, OTHER[missing]
    assert {g["target"] for g in document["golden"]} == {here}
    assert len(document["golden"]) == len(files_of(built_both, here))
    (left,) = document["not_run"]
    assert left["target"] == missing and set(left["files"]) == files_of(built_both, missing)
    assert "is installed" in left["why"] or "is not installed" in left["why"]
    parity = document["parity"]
    assert set(parity["targets"]) == {here, f"{here}/fp32"} and parity["between"] == []
    assert {limit["name"].split(".")[0] for limit in parity["limits"]} == {here, f"{here}/fp32"}


def test_what_was_not_run_is_said_to_a_person(built_both: Path) -> None:
    shown = command("verify", built_both, blocked=LITERT)
    assert shown.code == 0
    (line,) = [line for line in shown.out.splitlines() if line.startswith("not run: litert: ")]
    assert 'pip install "athe-export[litert]"' in line and "litert/simple.int8.tflite" in line
    assert not [line for line in shown.out.splitlines() if "litert" in line and "pass" in line]


@pytest.mark.parametrize("verb", ["verify", "run"])
def test_without_any_engine_both_are_named_and_the_faster_ones_command_is_given(
    built_both: Path, photo: Path, verb: str
) -> None:
    arguments = [verb, built_both, *([photo] if verb == "run" else []), "--json"]
    shown = command(*arguments, blocked=("onnxruntime", *LITERT))
    require_one_message(shown, 6)
    error = error_of(shown, 6, "missing_dependency")
    for said in (shown.err, error["message"]):
        assert "onnxruntime is not installed" in said and "no LiteRT runtime (ai_edge_litert) is installed" in said
    assert shown.err.splitlines()[-1] == '  next: pip install "athe-export[litert]"'


@pytest.mark.parametrize("verb", ["verify", "run"])
def test_a_bundle_for_litert_alone_needs_litert(litert_only: tuple[Path, Any], photo: Path, verb: str) -> None:
    arguments = [verb, litert_only[0], *([photo] if verb == "run" else []), "--json"]
    error = error_of(command(*arguments, blocked=LITERT), 6, "missing_dependency")
    assert "litert" in error["message"] and error["remedy"] == 'pip install "athe-export[litert]"'


def test_run_goes_on_with_onnx_where_litert_is_not_and_says_so(built_both: Path, photo: Path) -> None:
    found = command("run", built_both, photo, "--json", blocked=LITERT)
    assert found.code == 0, found.err
    assert found.document["target"] == "onnx"
    (left,) = found.document["not_run"]
    assert left["target"] == "litert" and "no LiteRT runtime" in left["why"]
    shown = command("run", built_both, photo, blocked=LITERT)
    assert "note: litert is not used: no LiteRT runtime" in shown.out and "target onnx" in shown.out


def test_an_engine_that_is_asked_for_and_not_here_is_not_replaced(built_both: Path, photo: Path) -> None:
    for target, blocked in ENGINES.items():
        outcome = command("run", built_both, photo, "--target", target, "--json", blocked=blocked)
        error = error_of(outcome, 6, "missing_dependency")
        assert error["remedy"] == f'pip install "athe-export[{target}]"'


def test_a_device_with_litert_alone_verifies_and_runs(litert_only: tuple[Path, Any], built_both: Path, photo: Path) -> None:
    """What the extra `litert` brings: no torch, no ONNX Runtime, nothing of the build."""
    away = ("torch", "onnxruntime", "onnx", "onnxsim", "safetensors", "filelock", "litert_torch", "ai_edge_quantizer")
    assert command("verify", litert_only[0], "--json", blocked=away).code == 0
    for bundle in (litert_only[0], built_both):
        assert command("run", bundle, photo, "--json", blocked=away).document["target"] == "litert"


def test_doctor_tells_which_engine_is_ready(photo: Path) -> None:
    jobs = {j["job"]: j for j in command("doctor", "--json", blocked=LITERT).document["jobs"]}
    litert, onnx = jobs["run and verify bundles with LiteRT"], jobs["run and verify bundles with ONNX Runtime"]
    assert (litert["ready"], onnx["ready"]) == (False, True)
    assert litert["missing"] == ["ai_edge_litert|tflite_runtime"] and "athe-export[litert]" in litert["remedy"]


# a runtime that is too old for one graph


@pytest.fixture
def with_a_newer_graph(bundle_both: Path) -> Path:
    """The bundle with one graph that names an op in a version that no runtime knows yet."""
    path = bundle_both / "litert/complex.int8.tflite"
    model = unpack(path.read_bytes())
    for code in (c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.SOFTMAX):
        code.version = 99
    replace_file(bundle_both, "litert/complex.int8.tflite", pack(model))
    return bundle_both


def test_a_graph_that_the_runtime_is_too_old_for_is_not_passed_and_the_others_are_run(
    with_a_newer_graph: Path, data: Path
) -> None:
    found = cli("verify", with_a_newer_graph, "--data-root", data, "--json")
    assert found.code == 0, found.err
    (left,) = found.document["not_run"]
    assert (left["target"], left["files"]) == ("litert", ["litert/complex.int8.tflite"])
    assert "does not know op SOFTMAX version 99" in left["why"]
    run = {(g["target"], g["role"], g["precision"]) for g in found.document["golden"]}
    assert ("litert", "complex", "int8") not in run and ("litert", "simple", "int8") in run and len(run) == 10
    assert set(found.document["parity"]["targets"]) == {"onnx", "onnx/fp32", "litert/fp32"}


def test_run_names_the_op_that_it_stops_at_and_what_to_do(with_a_newer_graph: Path, photo: Path) -> None:
    arguments = ("run", with_a_newer_graph, photo, "--branch", "complex")
    error = error_of(cli(*arguments, "--json"), 6, "missing_dependency")
    assert "SOFTMAX version 99" in error["message"] and "--target onnx" in error["remedy"]
    assert cli(*arguments, "--target", "onnx").code == 0
    assert cli(*arguments, "--precision", "fp32").code == 0
