"""What CI reads: JUnit XML, the Markdown summary, GitHub annotations, and the schema of the parity object."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import jsonschema
import pytest

from athe_export.report.annotations import annotation_lines
from athe_export.report.checks import Outcome, outcome_of
from athe_export.report.junit import junit_xml
from athe_export.report.markdown import markdown_summary
from athe_export.report.parity_schema import PARITY_SCHEMA
from tests.parity_example import parity_example

GOLDEN = {"target": "onnx", "role": "simple", "precision": "int8", "same_top1": True, "bit_equal": True, "max_abs_diff": 0.0,
          "tolerance": 0.2, "note": None, "passed": True}  # fmt: skip
NOT_RUN = {"target": "litert", "why": "ai-edge-litert is not installed", "files": ["litert/simple.int8.tflite"]}
MISSED = {"code": 3, "kind": "gate_failed", "message": "broken", "where": "out", "remedy": "build again", "files": []}

# of junit-10.xsd, which Jenkins' xUnit plugin publishes: element -> (attributes allowed, those required, children)
JUNIT: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "disabled", "errors", "skipped"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id", "package"},
        {"name", "tests"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "assertions", "time", "classname", "status"},
        {"name"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": ({"type", "message"}, set(), set()),
    "error": ({"type", "message"}, set(), set()),
    "skipped": ({"type", "message"}, set(), set()),
    "system-out": (set(), set(), set()),
}


def require_junit(text: str) -> ET.Element:
    """Parses JUnit XML and holds every element against the common schema; the counts must be those of the elements."""
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed, required, children = JUNIT[element.tag]
        assert required <= set(element.attrib) <= allowed, element.tag
        assert {child.tag for child in element} <= children, element.tag
    for suite in (root, *root):
        for counted, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[counted]) == len(list(suite.iter(tag))), (suite.attrib, tag)
    return root


def outcome(**document: Any) -> Outcome:
    return outcome_of("verify out", document)


def missed() -> Outcome:
    """A gate of two targets of which one misses its limits, with a graph that could not be opened."""
    return outcome(golden=[GOLDEN], not_run=[NOT_RUN], parity=parity_example(), error=MISSED)


def cases(text: str) -> dict[str, str]:
    """Test case -> how it ended."""
    found = {}
    for case in require_junit(text).iter("testcase"):
        (result,) = case
        found[f"{case.attrib['classname']} {case.attrib['name']}"] = result.tag
    return found


# junit


def test_there_is_a_test_case_for_every_limit_and_every_golden_graph_and_no_other() -> None:
    found = cases(junit_xml(missed()))
    limits = {"parity.{} {}".format(*x["name"].rpartition(".")[::2]) for x in parity_example()["limits"]}
    assert set(found) == limits | {"golden.onnx simple int8", "golden.litert litert/simple.int8.tflite"}


def test_failed_and_inconclusive_and_skipped_are_told_apart_and_none_is_green() -> None:
    found = cases(junit_xml(missed()))
    assert found["parity.onnx min_agreement"] == "system-out"
    assert found["parity.litert min_agreement"] == "failure"
    assert found["parity.litert max_top1_drop_pp"] == "error"
    assert found["golden.litert litert/simple.int8.tflite"] == "skipped"
    (error,) = [e for e in ET.fromstring(junit_xml(missed())).iter("error") if "60,500 images" in e.attrib["message"]]
    assert error.attrib["type"] == "inconclusive"


def test_an_error_that_ends_the_run_is_a_test_case_and_a_missed_gate_is_not_counted_twice() -> None:
    damaged = MISSED | {"code": 5, "kind": "bundle_integrity", "message": "labels.txt: changed"}
    text = junit_xml(outcome(error=damaged))
    assert cases(text) == {"bundle.verify out bundle_integrity": "error"}
    assert "labels.txt: changed" in text and "build again" in text
    assert not any(name.startswith("bundle.") for name in cases(junit_xml(missed())))


def test_a_gate_that_was_not_run_is_skipped_by_name() -> None:
    found = cases(junit_xml(outcome(golden=[GOLDEN], not_run=[], parity=None, gate_at_build="pass")))
    assert found == {"golden.onnx simple int8": "system-out", "parity.bundle gate": "skipped"}
    assert "never trained" in junit_xml(outcome(golden=[GOLDEN], parity=None, verdict="not_gated"))


def test_text_that_xml_cannot_hold_does_not_break_the_file() -> None:
    nasty = "a\x00b \x1b[31m <&\"'> \ud800 ]]> \U0001f600"
    text = junit_xml(outcome(error=MISSED | {"kind": "internal", "message": nasty}))
    (error,) = require_junit(text.encode("utf-8").decode()).iter("error")
    assert "<&\"'>" in error.attrib["message"] and "\U0001f600" in error.attrib["message"]


# markdown


def test_the_summary_holds_verdict_limits_hops_and_where_images_were_lost() -> None:
    text = markdown_summary(missed())
    assert text.startswith("## verify out: **failed**\n")
    for said in ("exit code 3", "| onnx.max\\_top1\\_drop\\_pp | pass | 0.70 pp | 0.10 pp | -0.24 pp to 0.44 pp |", "60,500",
                 "Hop by hop", "61 images lost, 49 won", "ai-edge-litert is not installed", "Next: build again"):  # fmt: skip
        assert said in text, said


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    blocks = [b for b in markdown_summary(missed()).split("\n\n") if b.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        assert len({line.count("|") - line.count("\\|") for line in block.splitlines()}) == 1


def test_a_message_cannot_write_markup_into_the_summary() -> None:
    text = markdown_summary(outcome(error=MISSED | {"kind": "usage", "message": "a|b <img src=x>\n# no [link](x) `c`"}))
    assert "\n# no" not in text and "<img" not in text.replace("\\<img", "") and "\\[link" in text


# annotations


def test_failures_are_errors_and_inconclusive_limits_are_warnings() -> None:
    lines = annotation_lines(missed())
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::warning", "::warning"]
    assert "litert.min_agreement" in lines[0] and "60,500 images" in lines[1]


def test_an_annotation_is_one_line_whatever_the_message() -> None:
    (line,) = annotation_lines(outcome(error=MISSED | {"kind": "usage", "message": "100%\nsecond ::error::x\r"}))
    assert "\n" not in line and "\r" not in line
    assert line.startswith("::error title=verify out::100%25%0Asecond ")


def test_a_title_cannot_end_the_commands_properties() -> None:
    (line,) = annotation_lines(outcome_of("verify a,b:c", {"error": MISSED | {"kind": "usage"}}))
    assert line.startswith("::error title=verify a%2Cb%3Ac::")


def test_more_than_github_shows_are_counted() -> None:
    parity = parity_example()
    parity["limits"] = [parity["limits"][6]] * 14
    lines = annotation_lines(outcome(parity=parity, error=MISSED))
    assert len(lines) == 10
    assert "and 5 more" in lines[-1]


@pytest.mark.parametrize("document", [{"golden": [GOLDEN], "not_run": [], "parity": None}, {"golden": [], "parity": None}])
def test_what_passes_is_annotated_with_nothing(document: dict[str, Any]) -> None:
    assert annotation_lines(outcome(**document)) == ()
    assert outcome(**document).verdict == "pass"


# the parity object


def test_the_schema_is_a_schema_and_takes_the_example() -> None:
    jsonschema.Draft202012Validator.check_schema(PARITY_SCHEMA)
    jsonschema.validate(parity_example(), PARITY_SCHEMA)


@pytest.mark.parametrize("field", ["images", "verdict", "reference", "targets", "limits"])
def test_the_schema_refuses_a_parity_object_without_a_contracted_field(field: str) -> None:
    parity = parity_example()
    del parity[field]
    with pytest.raises(jsonschema.ValidationError, match=field):
        jsonschema.validate(parity, PARITY_SCHEMA)


def test_the_schema_takes_what_older_bundles_hold() -> None:
    parity = parity_example()
    for field in ("confidence", "hops", "between"):
        del parity[field]
    for limit in parity["limits"]:
        for field in ("lower", "upper", "images", "images_needed", "measured"):
            del limit[field]
    for target in parity["targets"].values():
        del target["attribution"]
    jsonschema.validate(parity, PARITY_SCHEMA)
    assert "| 0.44 pp |" in markdown_summary(outcome(parity=parity, error=MISSED))
