"""The manifest: what is written is read back, and anything else is refused with the place named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from athe_export.bundle.consistency import inconsistencies
from athe_export.bundle.manifest import Manifest, parse_manifest
from athe_export.errors import BundleIntegrityError
from tests.tools import plain_manifest

Change = Callable[[dict[str, Any]], object]


def _changed(change: Change) -> str:
    content = plain_manifest().to_json()
    change(content)
    return json.dumps(content)


def test_a_written_manifest_is_read_back_as_it_was() -> None:
    manifest = plain_manifest()
    assert parse_manifest(manifest.to_text(), "here") == manifest
    assert parse_manifest(json.dumps(manifest.to_json()), "here") == manifest


def test_the_same_manifest_is_always_the_same_text() -> None:
    content = plain_manifest().to_json()
    backwards = json.dumps(dict(reversed(content.items())))
    assert parse_manifest(backwards, "here").to_text() == plain_manifest().to_text()


def test_keys_of_a_newer_writer_are_passed_over() -> None:
    def add(content: dict[str, Any]) -> None:
        content["signed_by"] = "someone"
        content["graphs"][0]["energy_mj"] = 3

    assert parse_manifest(_changed(add), "here") == plain_manifest()


def test_a_whole_number_stands_for_a_float() -> None:
    manifest = parse_manifest(_changed(lambda c: c["graphs"][0].update(mmacs=7)), "here")
    assert isinstance(manifest.graphs[0].mmacs, float)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, [1]])
def test_an_unknown_schema_version_is_refused(version: object) -> None:
    with pytest.raises(BundleIntegrityError, match="schema_version") as error:
        parse_manifest(_changed(lambda c: c.update(schema_version=version)), "here")
    assert "install the athe-export that wrote" in error.value.remedy


@pytest.mark.parametrize("text", ["[]", '"manifest"', "null", "1"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(BundleIntegrityError, match="schema_version None"):
        parse_manifest(text, "here")


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1', "schema_version: 1", "[" * 100_000])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BundleIntegrityError, match="not JSON") as error:
        parse_manifest(text, "here")
    assert [f.problem for f in error.value.files] == ["changed"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda c: c.pop("name"), "manifest.name is missing"),
        (lambda c: c.update(name=7), "manifest.name must be str"),
        (lambda c: c.update(recipe=[]), "manifest.recipe must be an object"),
        (lambda c: c.update(tools={"torch": 2}), "manifest.tools.torch must be str"),
        (lambda c: c.update(graphs={}), "manifest.graphs must be a list"),
        (lambda c: c.update(graphs=["a.onnx"]), r"manifest.graphs\[0\] must be an object"),
        (lambda c: c["graphs"][0].pop("sha256"), r"manifest.graphs\[0\].sha256 is missing"),
        (lambda c: c["graphs"][0].update(bytes="5"), r"manifest.graphs\[0\].bytes must be int"),
        (lambda c: c["graphs"][0].update(bytes=True), r"manifest.graphs\[0\].bytes must be int"),
        (lambda c: c["graphs"][0].update(borrows={}), r"manifest.graphs\[0\].borrows.file is missing"),
        (lambda c: c["graphs"][0].update(mmacs=False), r"manifest.graphs\[0\].mmacs must be float"),
        (lambda c: c["graphs"][0]["inputs"][0].update(shape=[1, "n"]), r"inputs\[0\].shape\[1\] must be int"),
        (lambda c: c["files"][0].update(optional="no"), r"manifest.files\[0\].optional must be bool"),
        (lambda c: c.update(router="mobilenet"), "manifest.router must be an object"),
        (lambda c: c["preprocessing"].update(mean=None), "manifest.preprocessing.mean must be a list"),
    ],
)
def test_a_field_that_is_missing_or_of_another_type_is_named(change: Change, place: str) -> None:
    with pytest.raises(BundleIntegrityError, match=place):
        parse_manifest(_changed(change), "here")


def _with_graphs(*graphs: tuple[str, str, str], router: dict[str, list[float]] | None = None) -> Manifest:
    """A manifest of these graphs (target, role, precision): two branches with a router, or `only` without."""
    content = plain_manifest().to_json()
    entry, (branch,) = content["graphs"][0], content["branches"]
    content["graphs"] = [entry | {"target": t, "role": r, "precision": p} for t, r, p in graphs]
    content["golden"]["tolerance"] = {"int8": 0.1, "fp32": 0.001}
    if router is not None:
        content["router"] = {"arch": "mobilenet_v1_0.25", "image_size": 32, "bounds": router}
        content["branches"] = [branch | {"name": name} for name in ("simple", "complex")]
    return parse_manifest(json.dumps(content), "here")


BOUNDS = {"reference": [0.5], "onnx": [0.5], "litert": [0.4]}
BRANCHES = ("simple", "complex")


def test_targets_and_systems_stand_in_the_order_of_the_graphs_int8_first() -> None:
    manifest = _with_graphs(("onnx", "only", "fp32"), ("litert", "only", "fp32"), ("litert", "only", "int8"))
    assert manifest.targets == ("onnx", "litert")
    assert manifest.systems == (("onnx", "fp32"), ("litert", "int8"), ("litert", "fp32"))
    assert [manifest.system_name(*s) for s in manifest.systems] == ["onnx", "litert", "litert/fp32"]
    assert inconsistencies(manifest) == []


def test_a_router_of_one_precision_serves_both_and_one_of_two_each_its_own() -> None:
    both = [("litert", role, p) for role in ("router", *BRANCHES) for p in ("int8", "fp32")]
    one = [("onnx", role, p) for role in BRANCHES for p in ("int8", "fp32")]
    manifest = _with_graphs(*both, *one, ("onnx", "router", "fp32"), router=BOUNDS)
    for target, precision in manifest.systems:
        found = manifest.graphs_of(target, precision)
        assert {(g.target, g.role) for g in found.values()} == {(target, role) for role in ("router", *BRANCHES)}
        assert {found[name].precision for name in BRANCHES} == {precision}
        assert found["router"].precision == (precision if target == "litert" else "fp32")
    assert len(manifest.systems) == 4 and inconsistencies(manifest) == []


def test_a_targets_bounds_are_its_int8_routers_and_an_fp32_router_beside_it_takes_the_references() -> None:
    both = [("litert", "router", precision) for precision in ("int8", "fp32")]
    manifest = _with_graphs(*both, ("onnx", "router", "fp32"), ("onnx", "simple", "int8"), router=BOUNDS)
    assert (manifest.router_bounds("litert", "int8"), manifest.router_bounds("litert", "fp32")) == ((0.4,), (0.5,))
    assert manifest.router_bounds("onnx", "fp32") == (0.5,)


def test_a_precision_that_a_branch_lacks_is_no_system() -> None:
    graphs = [("litert", "router", "int8"), ("litert", "simple", "int8"), ("litert", "simple", "fp32")]
    manifest = _with_graphs(*graphs, ("litert", "complex", "int8"), router=BOUNDS)
    assert manifest.systems == (("litert", "int8"),)
    assert inconsistencies(manifest) == []


@pytest.mark.parametrize(
    ("graphs", "said"),
    [
        (
            [("litert", "router", "int8"), ("litert", "simple", "int8"), ("litert", "complex", "fp32")],
            "no precision that all",
        ),
        ([("litert", role, "int8") for role in ("router", "simple", "complex", "simple")], "twice"),
        ([("litert", role, "int8") for role in BRANCHES], r"target litert has graphs of \['complex', 'simple'\]"),
        (
            [*(("onnx", r, "int8") for r in ("router", *BRANCHES)), ("litert", "simple", "int8")],
            r"target litert has graphs of \['simple'\]",
        ),
    ],
    ids=["precisions that do not meet", "a graph twice", "no router", "a target that is half there"],
)
def test_targets_that_could_not_be_run_are_found_out(graphs: list[tuple[str, str, str]], said: str) -> None:
    problems = inconsistencies(_with_graphs(*graphs, router=BOUNDS))
    assert re.search(said, "\n".join(problems)), problems


def test_a_manifest_as_it_is_written_does_not_contradict_itself() -> None:
    assert inconsistencies(plain_manifest()) == []


_BORROWS: dict[str, Any] = {"file": "onnx/other.onnx", "bytes": 9, "sha256": "d" * 64}
_ROUTER = {"arch": "mobilenet_v1_0.25", "image_size": 32}
_PARITY = {"reference": {"top1": 0.5}, "targets": {"onnx": {"top1": 0.5, "agreement": 1.0, "share": {}, "branches": {}}}}


def _layers(**changes: object) -> dict[str, Any]:
    row = {"name": "head", "layers": ["head"], "sqnr_db": 20.0, "agreement": 1.0} | changes
    branch = {"images": 8, "together": None, "ranked": [row], "not_measured": []}
    return {"onnx": {"sensitivity": {"split": "holdout", "branches": {"only": branch}}}}


def _searched(**changes: object) -> dict[str, Any]:
    figures = dict.fromkeys(("drop_pp", "drop_lower_pp", "drop_upper_pp", "agreement"), 0.5)
    trial = {"keep_float": [], "verdict": "pass", "images_needed": None, "slowdown": 1.0, "error": None} | figures | changes
    return {"onnx": {"search": {"ended": "met", "kept_by_recipe": [], "keep_float": [], "trials": [trial]}}}


def test_records_of_single_layers_do_not_contradict_themselves() -> None:
    for record in (_layers(), _layers(sqnr_db=None), _searched()):
        assert inconsistencies(parse_manifest(_changed(lambda c, r=record: c.update(precision=r)), "here")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(branches=[]), "0 branches without a router"),
        (lambda c: c["branches"].append(c["branches"][0]), "branch names clash"),
        (lambda c: c["branches"][0].update(name="../only"), "are not names"),
        (lambda c: c.update(router={**_ROUTER, "bounds": {}}), "1 branches with a router"),
        (lambda c: c.update(router={**_ROUTER, "bounds": {"reference": []}}), "router.bounds.onnx"),
        (lambda c: c.update(graphs=[]), "no graphs"),
        (lambda c: c["graphs"][0].update(role="other"), r"graphs of \['other'\]"),
        (lambda c: c["graphs"][0].update(sha256="0" * 64), "not among the files"),
        (lambda c: c["graphs"][0].update(file="onnx/none.onnx"), "not among the files"),
        (lambda c: c["graphs"][0].update(borrows=_BORROWS | {"file": "onnx/only.onnx"}), "which is no whole graph"),
        (lambda c: c["graphs"][0].update(borrows=_BORROWS | {"file": "../only.onnx"}), "which is no whole graph"),
        (lambda c: c["graphs"][0].update(inputs=[]), "one input"),
        (lambda c: c["graphs"][0]["inputs"][0].update(shape=[1, 3, 32, 64]), "one input"),
        (lambda c: c["graphs"][0]["inputs"][0].update(shape=[]), "one input"),
        (lambda c: c["files"].append(c["files"][0]), "lists a path twice"),
        (lambda c: c.update(golden={}), "golden.tolerance.int8 is missing"),
        (lambda c: c.update(golden={"tolerance": {"int8": "0.1"}}), "golden.tolerance.int8 is missing"),
        (lambda c: c["preprocessing"].update(resize="nearest"), "preprocessing: resize"),
        (lambda c: c["preprocessing"].update(std=[1, 0, 1]), "preprocessing: resize, mean or std"),
        (lambda c: c["preprocessing"].update(source_size=0), "preprocessing: sizes"),
        (lambda c: c["preprocessing"].update(sizes=[]), "preprocessing: sizes"),
        (lambda c: c.update(gate={}), "gate.limits must hold"),
        (lambda c: c["gate"]["limits"].update(confidence="high"), "gate.limits must hold"),
        (lambda c: c["gate"]["limits"].pop("min_agreement"), "gate.limits must hold"),
        (lambda c: c["gate"].update(limits={"a": 1, "b": 1, "c": 1, "d": 1}), "gate.limits must hold"),
        (lambda c: c["gate"].update(split=3), "gate.split"),
        (lambda c: c["dataset"].pop("sha256"), "dataset.sha256 is missing"),
        (lambda c: c["recipe"].update(sha256="abc"), "recipe.sha256 is missing"),
        (lambda c: c.update(checkpoint={}), "checkpoint.sha256 is missing"),
        (lambda c: c.update(parity={}), "reference.top1"),
        (lambda c: c.update(parity=_PARITY), "share and branches for only"),
        (lambda c: c.update(precision={"onnx": 1}), "precision.onnx must be an object"),
        (lambda c: c.update(precision={"onnx": {"sensitivity": 1}}), "precision.onnx.sensitivity must hold"),
        (lambda c: c.update(precision=_layers(sqnr_db="20")), "precision.onnx.sensitivity must hold"),
        (lambda c: c.update(precision={"onnx": {"search": {}}}), "precision.onnx.search must hold"),
        (lambda c: c.update(precision=_searched(keep_float=[1])), "precision.onnx.search must hold"),
        (lambda c: c.update(precision=_searched(slowdown="2")), "precision.onnx.search must hold"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_found_out(change: Change, said: str) -> None:
    problems = inconsistencies(parse_manifest(_changed(change), "here"))
    assert re.search(said, "\n".join(problems)), problems
