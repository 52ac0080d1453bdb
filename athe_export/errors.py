"""The errors a user can meet: each class fixes an exit code and a kind; each instance says what, where, what next.

The command line formats them once (`cli.py`); nothing below it prints or exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class FileProblem:
    """One file of a bundle that is not as the manifest says; `problem` is changed, missing or extra."""

    path: str
    problem: str


class AtheExportError(Exception):
    """Base of all expected failures.

    Args:
        what: what is wrong, one sentence or a list of lines.
        where: file, key or value it was found at.
        remedy: what to do next.
        files: per-file findings (bundle integrity).
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "internal"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        files: tuple[FileProblem, ...] = (),
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.remedy, self.files = what, where, remedy, files

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


class RecipeError(AtheExportError):
    exit_code, kind = 2, "recipe"


class ImageError(AtheExportError):
    exit_code, kind = 2, "image"


class CheckpointError(AtheExportError):
    exit_code, kind = 2, "checkpoint"


class CalibrationError(AtheExportError):
    exit_code, kind = 2, "calibration"


class GateFailed(AtheExportError):
    exit_code, kind = 3, "gate_failed"


class GateInconclusive(AtheExportError):
    exit_code, kind = 4, "gate_inconclusive"


class BundleIntegrityError(AtheExportError):
    exit_code, kind = 5, "bundle_integrity"


class MissingDependency(AtheExportError):
    exit_code, kind = 6, "missing_dependency"


class DatasetError(AtheExportError):
    exit_code, kind = 6, "dataset"


class EnvironmentFailure(AtheExportError):
    exit_code, kind = 7, "environment"


class ExportError(AtheExportError):
    exit_code, kind = 8, "export"


class TrainingError(AtheExportError):
    exit_code, kind = 8, "training"
