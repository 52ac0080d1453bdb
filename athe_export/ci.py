"""What a `verify` or a `build` leaves for CI: JUnit XML, a Markdown summary, annotations.

Files are written whole or not at all, and an older one is removed first: what a run that was cut short leaves behind must
not be taken for its result.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athe_export.errors import AtheExportError, EnvironmentFailure, UsageError, as_error
from athe_export.report.annotations import annotation_lines
from athe_export.report.checks import outcome_of
from athe_export.report.junit import junit_xml
from athe_export.report.markdown import markdown_summary

Report = dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """Where to: `junit` and `summary` as asked for, `step_summary` and `annotate` as GitHub's runner has set them."""

    junit: Path | None = None
    summary: Path | None = None
    step_summary: Path | None = None
    annotate: bool = False

    @classmethod
    def here(cls, junit: Path | None, summary: Path | None) -> Outputs:
        """With what the surroundings ask for: GITHUB_STEP_SUMMARY names a file, GITHUB_ACTIONS is `true` in a workflow."""
        step = os.environ.get("GITHUB_STEP_SUMMARY")
        return cls(junit, summary, Path(step) if step else None, os.environ.get("GITHUB_ACTIONS") == "true")


@contextlib.contextmanager
def told_to_ci(title: str, outputs: Outputs, bundle: Path | None) -> Iterator[Callable[[Report], None]]:
    """Runs what is inside, then writes `outputs` from the document that it handed over, or from the error it ended in.

    An interrupt writes nothing. No file may be in `bundle`, where it would be one too many.

    Raises:
        UsageError, EnvironmentFailure: a file that was asked for cannot be written; found out before the work begins.
    """
    for option, path in (("--junit", outputs.junit), ("--summary", outputs.summary)):
        if path is not None:
            _make_way(option, path, bundle)
    documents: list[Report] = []
    try:
        yield documents.append
    except Exception as error:
        failure = as_error(error)
        try:
            _write(title, {**failure.report, "error": failure.to_json()}, outputs)
        except AtheExportError as unwritten:  # the first error is the one that counts
            _warn(unwritten)
        raise
    for document in documents:
        _write(title, document, outputs)


def _write(title: str, document: Report, outputs: Outputs) -> None:
    outcome = outcome_of(title, document)
    if outputs.annotate:  # the runner reads both streams, and stdout belongs to the results
        sys.stderr.write("".join(f"{line}\n" for line in annotation_lines(outcome)))
        sys.stderr.flush()
    if outputs.junit is not None:
        _replace(outputs.junit, junit_xml(outcome))
    text = markdown_summary(outcome)
    if outputs.summary is not None:
        _replace(outputs.summary, text)
    if outputs.step_summary is not None:
        try:
            with _said_plainly(outputs.step_summary), outputs.step_summary.open("a", encoding="utf-8") as file:
                file.write(text + "\n")  # all steps of a job append to it
        except AtheExportError as unwritten:  # nobody asked for it: a container may have the name and not the file
            _warn(unwritten)


def _warn(unwritten: AtheExportError) -> None:
    sys.stderr.write(f"warning: {unwritten.where}: {unwritten.what}\n")


def _make_way(option: str, path: Path, bundle: Path | None) -> None:
    """Removes the file of an earlier run, and finds out whether one can be written."""
    if bundle is not None and path.resolve().is_relative_to(bundle.resolve()):
        raise UsageError("would be an extra file of the bundle", where=str(path), remedy=f"give {option} another folder")
    if path.exists() and not path.is_file():
        raise UsageError("is not a file that can be replaced", where=str(path), remedy=f"give {option} the path of a file")
    with _said_plainly(path):
        path.unlink(missing_ok=True)
        part = _part(path)
        part.touch()
        part.unlink()


def _replace(path: Path, text: str) -> None:
    with _said_plainly(path):
        part = _part(path)
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextlib.contextmanager
def _said_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        remedy = "give the path of a file in a folder that exists and may be written"
        raise EnvironmentFailure(f"cannot be written: {err.strerror}", where=str(path), remedy=remedy) from err
