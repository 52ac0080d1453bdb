"""The errors a user can meet: each class fixes an exit code and a kind; each instance says what, where, what next.

The entry point formats them once (`cli.py`); nothing below it prints them or exits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class FileProblem(NamedTuple):
    """One file of a bundle that is not as the manifest says; `problem` is changed, missing or extra."""

    path: str
    problem: str


class AtheExportError(Exception):
    """Base of all expected failures.

    Args:
        what: what is wrong, one sentence or a list of lines.
        where: file, key or value it was found at.
        remedy: what to do next; where it is left out the class's own `remedy_of_kind` is said.
        files: per-file findings (bundle integrity).
        report: fields that stand beside `error` in the JSON document, e.g. the parity of a missed gate.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "internal"
    remedy_of_kind: ClassVar[str] = "this is our bug: please report it with the output of ATHE_DEBUG=1"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        files: tuple[FileProblem, ...] = (),
        report: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.files = what, where, files
        self.remedy = remedy or self.remedy_of_kind
        self.report = dict(report or {})

    def to_json(self) -> dict[str, Any]:
        """The documented `error` object."""
        return {
            "code": self.exit_code,
            "kind": self.kind,
            "message": self.what,
            "where": self.where,
            "remedy": self.remedy,
            "files": [{"path": f.path, "problem": f.problem} for f in self.files],
        }


class UsageError(AtheExportError):
    exit_code, kind = 2, "usage"
    remedy_of_kind = "athe-export --help lists verbs and options"


class RecipeError(AtheExportError):
    exit_code, kind = 2, "recipe"
    remedy_of_kind = "mend the recipe; `athe-export schema` prints its JSON Schema"


class ImageError(AtheExportError):
    exit_code, kind = 2, "image"
    remedy_of_kind = "give a JPEG or PNG"


class CheckpointError(AtheExportError):
    exit_code, kind = 2, "checkpoint"
    remedy_of_kind = "give another checkpoint with --checkpoint"


class CalibrationError(AtheExportError):
    exit_code, kind = 2, "calibration"
    remedy_of_kind = "make a new calibration set: python -m athe_export.data.make_calibration --help"


class PowerLogError(AtheExportError):
    exit_code, kind = 2, "power_log"
    remedy_of_kind = "docs/energy.md says how to record a log that can be joined with a run"


class GateFailed(AtheExportError):
    exit_code, kind = 3, "gate_failed"
    remedy_of_kind = "build again with other quantization settings"


class GateInconclusive(AtheExportError):
    exit_code, kind = 4, "gate_inconclusive"
    remedy_of_kind = "gate on more images"


class BundleIntegrityError(AtheExportError):
    exit_code, kind = 5, "bundle_integrity"
    remedy_of_kind = "copy the bundle again from where it was built, or build it again"


class MissingDependency(AtheExportError):
    exit_code, kind = 6, "missing_dependency"
    remedy_of_kind = "athe-export doctor says what is missing and the command that installs it"


class DatasetError(AtheExportError):
    exit_code, kind = 6, "dataset"
    remedy_of_kind = "give the folder of a complete dataset with --data-root or ATHE_DATA_ROOT"


class EnvironmentFailure(AtheExportError):
    exit_code, kind = 7, "environment"
    remedy_of_kind = "check that the place exists, may be written and has space left"


class RemoteFailure(AtheExportError):
    exit_code, kind = 7, "remote"
    remedy_of_kind = "run the same command again; what is current there was not touched"


class ExportError(AtheExportError):
    exit_code, kind = 8, "export"
    remedy_of_kind = "please report it with the recipe and the output of athe-export doctor --json"


class TrainingError(AtheExportError):
    exit_code, kind = 8, "training"
    remedy_of_kind = "please report it with the recipe and the output of athe-export doctor --json"


class Interrupted(AtheExportError):
    exit_code, kind = 130, "interrupted"
    remedy_of_kind = "run the same command again; nothing was put in place"


RESUME = "run the same command again with --resume, or without it where no state was saved yet"  # of interrupted training


def as_error(error: BaseException) -> AtheExportError:
    """Any failure as one of ours: what an entry point prints, and the code that it exits with."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt | OSError):
        error = error.__context__  # torch.save covers up what stopped it
    if isinstance(error, AtheExportError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(error, OSError):
        where = None if error.filename is None else str(error.filename)
        return EnvironmentFailure(str(error.strerror or error), where=where)
    return AtheExportError(f"{type(error).__name__}: {error}")
