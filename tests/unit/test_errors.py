"""The error tree: exit codes and kinds as documented, and always something to do next."""

from __future__ import annotations

import pytest

from athe_export import errors
from athe_export.errors import AtheExportError, BundleIntegrityError, FileProblem, GateFailed
from tests.tools import ERROR_FIELDS

CONTRACT = {
    "UsageError": 2,
    "RecipeError": 2,
    "ImageError": 2,
    "CheckpointError": 2,
    "CalibrationError": 2,
    "PowerLogError": 2,
    "GateFailed": 3,
    "GateInconclusive": 4,
    "BundleIntegrityError": 5,
    "MissingDependency": 6,
    "DatasetError": 6,
    "EnvironmentFailure": 7,
    "RemoteFailure": 7,
    "ExportError": 8,
    "TrainingError": 8,
    "Interrupted": 130,
}


def _classes() -> list[type[AtheExportError]]:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AtheExportError)]
    return [c for c in found if c is not AtheExportError]


def test_every_error_class_has_its_documented_exit_code() -> None:
    assert {c.__name__: c.exit_code for c in _classes()} == CONTRACT


def test_an_error_of_no_class_is_a_bug_of_ours() -> None:
    assert AtheExportError("x").exit_code == 1
    assert "report" in AtheExportError("x").remedy


def test_no_two_kinds_are_alike() -> None:
    kinds = [c.kind for c in [AtheExportError, *_classes()]]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("cls", _classes(), ids=lambda c: c.__name__)
def test_every_error_says_what_next_even_where_its_author_did_not(cls: type[AtheExportError]) -> None:
    assert "remedy_of_kind" in vars(cls), "a class without a remedy of its own says that it is our bug"
    assert cls("is wrong").to_json()["remedy"] == cls.remedy_of_kind
    assert cls("is wrong", remedy="do this").to_json()["remedy"] == "do this"


def test_the_error_object_holds_the_contracted_fields() -> None:
    problems = (FileProblem("onnx/a.onnx", "changed"), FileProblem("b", "extra"))
    found = BundleIntegrityError("is not whole", where="/bundle", files=problems).to_json()
    assert set(found) == ERROR_FIELDS
    assert found["files"] == [{"path": "onnx/a.onnx", "problem": "changed"}, {"path": "b", "problem": "extra"}]
    assert (found["code"], found["kind"], found["message"], found["where"]) == (
        5,
        "bundle_integrity",
        "is not whole",
        "/bundle",
    )


def test_what_an_error_reports_beside_itself_is_not_shared_with_its_maker() -> None:
    report = {"verdict": "fail"}
    error = GateFailed("missed", report=report)
    report["verdict"] = "pass"
    assert error.report == {"verdict": "fail"}
    assert AtheExportError("x").report == {}
