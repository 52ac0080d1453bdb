"""Which optional packages each job needs, whether they are here, and the command that installs them."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

from athe_export.errors import MissingDependency


class Job(NamedTuple):
    """Something a user wants to do: the import names it needs (`one|other`: either) and the extra that brings them."""

    name: str
    modules: tuple[str, ...]
    extra: str

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(m for m in self.modules if not any(installed(one) for one in m.split("|")))

    @property
    def remedy(self) -> str:
        return f'pip install "athe-export[{self.extra}]"'


LITERT_JOB = "run and verify bundles with LiteRT"
CAMERA_JOB = "classify camera frames"
READ_JOB = "read recipes"
_ONNX_BUILD = ("onnx", "onnxruntime", "onnxsim", "onnxscript")
_LITERT_BUILD = ("litert_torch", "litert_converter", "torchao", "ai_edge_litert", "ai_edge_quantizer", "flatbuffers")
JOBS = (
    Job(LITERT_JOB, ("ai_edge_litert|tflite_runtime",), "litert"),
    Job("run and verify bundles with ONNX Runtime", ("onnxruntime",), "onnx"),
    Job(CAMERA_JOB, ("cv2",), "camera"),
    Job(READ_JOB, ("yaml",), "build"),
    Job("build bundles", (*_ONNX_BUILD, *_LITERT_BUILD, "torch", "safetensors", "filelock", "yaml"), "build"),
    Job("train checkpoints", ("torch", "safetensors", "yaml"), "build"),
)
_DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "cv2": "opencv-python-headless"}


def installed(module: str) -> bool:
    """Whether the module can be found; nothing is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # an import hook refuses it, or a half-removed install
        return False


def require(name: str) -> None:
    """Raises MissingDependency where a package that the job needs is absent."""
    job = next(j for j in JOBS if j.name == name)
    if job.missing:
        raise MissingDependency(f"to {name}, these packages are missing: {', '.join(job.missing)}", remedy=job.remedy)


def installed_version(module: str) -> str | None:
    """Version of the distribution behind an import name; None where absent."""
    # not with the module: it takes longer to import than the runtime, which asks for no version
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(_DISTRIBUTIONS.get(module, module))
    except PackageNotFoundError:
        return None
