"""Which engine is there: a bundle for two targets where one of them, or none, can run; nothing unrun is called passed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from athe_export.targets.litert.graph import pack, unpack
from tests.tools import (
    blocked_python,
    cli,
    command,
    edit_manifest,
    error_of,
    graph_content,
    refused,
    replace_file,
    require_one_message,
)

LITERT = ("ai_edge_litert", "tflite_runtime")
ENGINES = {"onnx": ("onnxruntime",), "litert": LITERT}
OTHER = {"onnx": "litert", "litert": "onnx"}


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
    assert 'pip install "athe-export[litert]"' in line and "litert/simple.int8.part.tflite" in line
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


def test_without_the_converter_a_build_says_what_to_install_and_writes_nothing(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = tiny(targets={"litert": {}})
    outcome = command("build", recipe, "-o", tmp_path / "out" / "b", "--json", blocked=["litert_converter", "litert_torch"])
    error = error_of(outcome, 6, "missing_dependency")
    assert "litert_torch, litert_converter" in error["message"] and error["remedy"] == 'pip install "athe-export[build]"'
    assert not (tmp_path / "out").exists()


# a runtime that is too old for one graph, or for them all to be fast


# tflite_runtime as far as the code can see: the real interpreter under the name that it had before
_OLD_NAME = """
import sys
block = sys.meta_path.pop(0)
from ai_edge_litert.interpreter import Interpreter
sys.meta_path.insert(0, block)
for name in [n for n in sys.modules if n.split(".")[0] == "ai_edge_litert"]:
    del sys.modules[name]
"""


def test_tflite_runtime_comes_after_onnx_runtime_since_int8_is_slow_in_it(
    built_both: Path, litert_only: tuple[Path, Any], photo: Path, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text(_OLD_NAME)
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r})\nfrom athe_export.cli import main; main()"

    def target(bundle: Path, *blocked: str) -> str:
        done = blocked_python(code, ["ai_edge_litert", *blocked], "run", bundle, photo, "--json")
        assert done.returncode == 0, done.stderr
        found: str = json.loads(done.stdout)["target"]
        return found

    assert target(built_both) == "onnx"
    assert target(built_both, "onnxruntime") == target(litert_only[0]) == "litert"


def test_graphs_that_xnnpack_takes_in_more_parts_than_where_they_were_built_are_noted(
    bundle_both: Path, photo: Path
) -> None:
    """As if XNNPACK had taken them whole there."""
    assert cli("run", bundle_both, photo, "--json").document["notes"] == []

    def claim(manifest: dict[str, Any]) -> None:
        for graph in (g for g in manifest["graphs"] if g["role"] == "simple" and g["xnnpack"]):
            graph["xnnpack"]["partitions"] = 1

    edit_manifest(bundle_both, claim)
    (note,) = cli("run", bundle_both, photo, "--branch", "simple", "--json").document["notes"]
    assert "litert/simple.int8.part.tflite in 2 partitions here and took it in 1" in note and "ai-edge-litert" in note
    assert "note: XNNPACK takes litert/simple.int8.part.tflite" in cli("run", bundle_both, photo, "--branch", "simple").out
    verified = cli("verify", bundle_both, "--json")
    assert verified.code == 0
    noted = {(g["target"], g["role"], g["precision"]) for g in verified.document["golden"] if g["note"]}
    assert noted == {("litert", "simple", "int8"), ("litert", "simple", "fp32")}


@pytest.mark.parametrize("name", ["litert/complex.int8.tflite", "onnx/complex.int8.onnx"])
def test_a_graph_of_other_shapes_than_the_manifest_says_is_refused(bundle_both: Path, photo: Path, name: str) -> None:
    target, _, kind = name.partition("/complex.int8")
    replace_file(bundle_both, name, graph_content(bundle_both, f"{target}/router.fp32{kind}"))
    for verb in (["verify", bundle_both], ["run", bundle_both, photo, "--branch", "complex", "--target", target]):
        error = refused(5, "bundle_integrity", *verb)
        assert "shapes are not those in the manifest" in error["message"] and error["where"] == str(bundle_both / name)


@pytest.mark.parametrize("change", ["opset", "ir_version"])
def test_an_onnx_graph_that_the_runtime_is_too_old_for_is_not_passed_and_the_others_are_run(
    bundle_both: Path, change: str
) -> None:
    name = "onnx/simple.int8.onnx"
    model = onnx.load_from_string(graph_content(bundle_both, name))
    if change == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    replace_file(bundle_both, name, model.SerializeToString())
    found = cli("verify", bundle_both, "--json")
    assert found.code == 0, found.err
    (left,) = found.document["not_run"]
    assert (left["target"], left["files"]) == ("onnx", [name]) and "upgrade onnxruntime" in left["why"]
    assert len(found.document["golden"]) == 10


def test_where_no_system_is_whole_verify_does_not_pass(with_a_newer_graph: Path) -> None:
    """Each graph but one of every system runs; the bundle can classify nothing all the same."""

    def litert_alone(manifest: dict[str, Any]) -> None:
        gone = [g for g in manifest["graphs"] if g["target"] == "onnx" or (g["role"], g["precision"]) == ("complex", "fp32")]
        manifest["graphs"] = [g for g in manifest["graphs"] if g not in gone]
        manifest["files"] = [f for f in manifest["files"] if f["path"] not in [g["file"] for g in gone]]
        manifest["parity"] = None
        for graph in gone:
            (with_a_newer_graph / graph["file"]).unlink()

    edit_manifest(with_a_newer_graph, litert_alone)
    error = refused(6, "missing_dependency", "verify", with_a_newer_graph)
    assert "SOFTMAX version 99" in error["message"] and "litert/complex.int8.tflite" in error["message"]


@pytest.fixture
def with_a_newer_graph(bundle_both: Path) -> Path:
    """The bundle with one graph that names an op in a version that no runtime knows yet."""
    model = unpack(graph_content(bundle_both, "litert/complex.int8.tflite"))
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
