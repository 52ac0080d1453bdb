"""The manifest: what is written is read back, and anything else is refused with the place named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from athe_export.bundle.consistency import inconsistencies
from athe_export.bundle.manifest import parse_manifest
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


def test_a_manifest_as_it_is_written_does_not_contradict_itself() -> None:
    assert inconsistencies(plain_manifest()) == []


_ROUTER = {"arch": "mobilenet_v1_0.25", "image_size": 32}
_PARITY = {"reference": {"top1": 0.5}, "targets": {"onnx": {"top1": 0.5, "agreement": 1.0, "share": {}, "branches": {}}}}


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
    ],
)
def test_a_manifest_that_contradicts_itself_is_found_out(change: Change, said: str) -> None:
    problems = inconsistencies(parse_manifest(_changed(change), "here"))
    assert re.search(said, "\n".join(problems)), problems
