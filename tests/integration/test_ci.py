"""What a job in CI gets of `verify` and `build`: exit codes, JUnit XML, summaries, annotations, and the pages' workflows."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from athe_export.report.parity_schema import PARITY_SCHEMA
from tests.conftest import ROOT
from tests.tools import Outcome, cli, command, edit_arrays, edit_manifest, error_of, listing, refused
from tests.unit.test_ci_formats import cases, require_junit

OLD = ROOT / "tests/bundles/v1/tiny"
PAGE = (ROOT / "docs/ci.md").read_text()


@pytest.fixture(autouse=True)
def no_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may themselves run in a workflow."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A private copy of the bundle that an earlier version wrote: it was gated, and no build is needed."""
    return Path(shutil.copytree(OLD, tmp_path / "bundle"))


def _broken_gate(bundle: Path) -> None:
    edit_arrays(bundle, "reference.npz", lambda a: a.update({"logits": np.roll(a["logits"], 1, axis=2)}))


def _other_golden_outputs(bundle: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        name = next(n for n in sorted(arrays) if n.startswith("onnx/"))
        arrays[name] = arrays[name] + 1

    edit_arrays(bundle, "golden.npz", change)


def _damaged(bundle: Path) -> None:
    (bundle / "labels.txt").write_text("other\n")


def _of_another_dataset(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["dataset"].update(sha256="0" * 64))


def unnamed(value: Any, schema: dict[str, Any], where: str = "parity") -> list[str]:
    """Fields that a schema says nothing of."""
    if isinstance(value, list):
        return [line for one in value for line in unnamed(one, schema.get("items", {}), f"{where}[]")]
    if not isinstance(value, dict):
        return []
    known, any_name = schema.get("properties", {}), schema.get("additionalProperties")
    lines = [] if any_name else [f"{where}.{name}" for name in value if name not in known]
    inner = {name: known.get(name, any_name) for name in value}
    return lines + [line for name, s in inner.items() if s for line in unnamed(value[name], s, f"{where}.{name}")]


ENDS: list[tuple[int, str, Callable[[Path], None], list[str]]] = [
    (0, "passes", lambda bundle: None, ["--data-root", "."]),
    (0, "passes without data", lambda bundle: None, []),
    (3, "misses the gate", _broken_gate, ["--data-root", "."]),
    (3, "differs from the golden outputs", _other_golden_outputs, []),
    (4, "has too few images", lambda bundle: None, ["--data-root", ".", "--limit", "2"]),
    (5, "is damaged", _damaged, []),
    (6, "has another dataset", _of_another_dataset, ["--data-root", "."]),
]


@pytest.mark.parametrize(("code", "says", "change", "options"), ENDS, ids=[e[1] for e in ENDS])
def test_each_end_has_its_exit_code_and_its_test_cases(
    kept: Path, tmp_path: Path, code: int, says: str, change: Callable[[Path], None], options: list[str]
) -> None:
    change(kept)
    found = cli("verify", kept, *options, "--junit", tmp_path / "junit.xml", "--summary", tmp_path / "summary.md", "--json")
    assert found.code == code, found.err
    text, document = (tmp_path / "junit.xml").read_text(), found.document
    root, ended = require_junit(text), cases(text)
    failed, errors = int(root.attrib["failures"]), int(root.attrib["errors"])
    limits = (document.get("parity") or {"limits": []})["limits"]
    assert sum(name.startswith("parity.") and kind != "skipped" for name, kind in ended.items()) == len(limits)
    golden = document.get("golden") or []
    assert sum(name.startswith("golden.") for name in ended) == len(golden)
    verdicts = [limit["verdict"] for limit in limits]
    assert failed == verdicts.count("fail") + sum(not g["passed"] for g in golden)
    if code < 5:
        assert errors == verdicts.count("inconclusive")
        assert bool(failed) == (code == 3) and (code != 4 or errors > 0) and (code != 0 or failed + errors == 0)
    else:
        (case,) = [c for c in root.iter("testcase") if c.attrib["classname"].startswith("bundle.")]
        assert case.attrib["name"] == document["error"]["kind"] and document["error"]["message"] in case[0].attrib["message"]
    assert f"exit code {code}." in (tmp_path / "summary.md").read_text()


def test_without_an_engine_the_missing_package_is_the_test_case(tmp_path: Path) -> None:
    found = command("verify", OLD, "--junit", tmp_path / "x.xml", blocked=["onnxruntime"])
    assert found.code == 6
    text = (tmp_path / "x.xml").read_text()
    assert list(cases(text).values()) == ["error"] and "missing_dependency" in text and "pip install" in text


def test_the_parity_object_keeps_to_its_schema(tmp_path: Path) -> None:
    schema = cli("schema", "parity").document
    assert schema == json.loads(json.dumps(PARITY_SCHEMA))
    jsonschema.validate(json.loads((OLD / "manifest.json").read_text())["parity"], schema)
    found = cli("verify", OLD, "--data-root", tmp_path, "--json").document["parity"]
    jsonschema.validate(found, schema)
    assert unnamed(found, schema) == []


# where it is written


def test_files_are_replaced_and_nothing_else_is_left(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "junit.xml").write_text("of an earlier run")
    assert cli("verify", kept, "--junit", out / "junit.xml").code == 0
    assert set(listing(out)) == {"junit.xml"}
    require_junit((out / "junit.xml").read_text())


def test_an_older_result_is_gone_where_the_run_is_cut_short(kept: Path, tmp_path: Path) -> None:
    """A file that says `pass` must not be taken for the result of a run that never ended."""
    (tmp_path / "junit.xml").write_text("of an earlier run")
    code = "import athe_export.verify as v\ndef stop(*_): raise KeyboardInterrupt\nv.verify_bundle = stop\n"
    from tests.tools import python

    done = python(code + "from athe_export.cli import main; main()", "verify", kept, "--junit", tmp_path / "junit.xml")
    assert done.returncode == 130, done.stderr
    assert not (tmp_path / "junit.xml").exists()


@pytest.mark.parametrize("option", ["--junit", "--summary"])
def test_a_place_that_cannot_be_written_is_said_before_the_work_begins(kept: Path, tmp_path: Path, option: str) -> None:
    missing = tmp_path / "no-such-folder" / "x"
    _damaged(kept)  # which would be exit code 5
    assert str(missing.parent) in refused(7, "environment", "verify", kept, option, missing)["where"]
    assert refused(2, "usage", "verify", kept, option, tmp_path)["where"] == str(tmp_path)


def test_a_file_in_the_bundle_is_refused_and_the_bundle_stays_whole(kept: Path) -> None:
    before = listing(kept)
    assert "extra file" in refused(2, "usage", "verify", kept, "--junit", kept / "junit.xml")["message"]
    assert listing(kept) == before


# in a workflow


def in_a_workflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: object) -> tuple[Outcome, str]:
    summary = tmp_path / "step.md"
    summary.write_text("of an earlier step\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    return cli(*arguments), summary.read_text()


def test_a_workflow_gets_annotations_and_a_summary_and_stdout_stays_one_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path
) -> None:
    _broken_gate(kept)
    found, summary = in_a_workflow(monkeypatch, tmp_path, "verify", kept, "--data-root", tmp_path, "--json")
    error_of(found, 3, "gate_failed")
    broken = [x["name"] for x in found.document["parity"]["limits"] if x["verdict"] == "fail"]
    told = [line for line in found.err.splitlines() if line.startswith("::error ")]
    assert broken and len(told) == len(broken) and all(any(name in line for line in told) for name in broken)
    assert summary.startswith("of an earlier step\n## verify ") and "**failed**" in summary
    assert "::" not in found.out.replace("::", "", 0) or "::error" not in found.out


def test_what_passes_gets_a_summary_and_no_annotation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path) -> None:
    found, summary = in_a_workflow(monkeypatch, tmp_path, "verify", kept)
    assert found.code == 0 and "::" not in found.err + found.out
    assert ": passed" in summary


def test_outside_of_a_workflow_nothing_is_annotated(kept: Path) -> None:
    _damaged(kept)
    assert "::error" not in cli("verify", kept).err


def test_a_summary_of_github_that_cannot_be_written_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no-such-folder" / "x"))
    found = cli("verify", kept)
    assert found.code == 0 and "warning: " in found.err and "no-such-folder" in found.err


# a build


def test_a_build_writes_the_same_files(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Quantized badly enough that answers change: half of what activations hold is cut off."""
    recipe = tiny(targets={"onnx": {"quantize": {"calibrator": "percentile", "percentile": 50}}})
    out = tmp_path / "out"
    found = cli("build", recipe, "-o", out, "--junit", tmp_path / "b.xml", "--summary", tmp_path / "b.md", "--json")
    assert found.code in (0, 3, 4), found.err
    ended, parity = cases((tmp_path / "b.xml").read_text()), found.document["parity"]
    jsonschema.validate(parity, PARITY_SCHEMA)
    assert unnamed(parity, PARITY_SCHEMA) == []
    assert {name for name in ended if name.startswith("golden.")} == {
        "golden.onnx router fp32", "golden.onnx simple int8", "golden.onnx complex int8"
    }  # fmt: skip
    assert sum(name.startswith("parity.") for name in ended) == len(parity["limits"])
    assert "Hop by hop" in (tmp_path / "b.md").read_text()
    folder = out if found.code == 0 else out.with_name(".out.staging")
    report = (folder / "report.html").read_text()
    assert "Hop by hop" in report and "Router: accuracy against cost" in report
    changed = [c["id"] for t in parity["targets"].values() for c in t["attribution"]["changed"]]
    assert report.count("data:image/png;base64,") == len(changed) > 0
    frontier = found.document["frontier"]
    assert set(frontier) == {"reference"} and sum(p["chosen"] for p in frontier["reference"]) == 1
    assert frontier == json.loads((folder / "manifest.json").read_text())["router"]["frontier"]


def test_a_recipe_that_cannot_be_read_is_a_test_case(tmp_path: Path) -> None:
    assert cli("build", tmp_path / "none.yaml", "--junit", tmp_path / "b.xml").code == 2
    assert list(cases((tmp_path / "b.xml").read_text()).values()) == ["error"]


# the page


def test_the_workflows_of_the_page_are_yaml_and_their_commands_do_what_the_page_says(tmp_path: Path) -> None:
    """Every `verify` of docs/ci.md is run, in a folder laid out as the page has it."""
    shutil.copytree(OLD, tmp_path / "bundles/my_model")
    (tmp_path / "data").mkdir()
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    github, gitlab = (yaml.safe_load(b) for b in blocks if b.startswith("#"))
    steps = [step["run"] for step in github["jobs"]["verify"]["steps"] if "run" in step]
    lines = [*steps, *gitlab["verify"]["script"]]
    lines += [step["run"] for b in blocks if b.startswith("      - run") for step in yaml.safe_load(b)]
    verifies = [line for line in lines if line.startswith("athe-export verify")]
    assert len(verifies) == 4
    for line in verifies:
        words = shlex.split(line.partition(">")[0].partition("||")[0])
        done = command(*words[1:], cwd=tmp_path)
        assert done.code == 0, done.err
    require_junit((tmp_path / "verify.xml").read_text())
    assert gitlab["verify"]["artifacts"]["reports"]["junit"] == "verify.xml" and (tmp_path / "verify.md").exists()


def test_the_page_names_every_exit_code_that_a_job_can_meet() -> None:
    section = PAGE.partition("## Exit codes")[2].partition("\n## ")[0]
    assert {int(c) for c in re.findall(r"^\| (\d) \|", section, re.M)} == {0, 3, 4, 5, 6, 7}


def test_every_field_of_the_parity_object_is_described_in_the_bundle_format() -> None:
    def names(schema: dict[str, Any]) -> set[str]:
        inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
        found = set(schema.get("properties", {}))
        return found.union(*(names(s) for s in inner if isinstance(s, dict)))

    section = (ROOT / "docs/bundle-format.md").read_text().partition("\n### parity")[2].partition("\n## Arrays")[0]
    written = set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`([^`]+)`", section))))
    assert names(PARITY_SCHEMA) - written == set()
