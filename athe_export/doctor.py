"""What `doctor` finds: packages, the jobs that they are enough for, and where CIFAR-100 would come from."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from athe_export import __version__
from athe_export.bench.tuned import tuned_here
from athe_export.data.download import user_cache
from athe_export.data.location import holds_cifar100, packed_files
from athe_export.dependencies import JOBS, LITERT_JOB, installed_version
from athe_export.errors import MissingDependency
from athe_export.runtime.litert_session import litert_unavailable


def findings() -> dict[str, Any]:
    """The document of `doctor --json`: `packages` with their versions (None: not installed), `jobs` with what each lacks and
    the command that mends it, `data_root` and whether it holds CIFAR-100, `cached` (the user cache where it does), and
    `tuned`: what `tune` remembers, and whether it is of this machine (`here`)."""
    modules = {one for job in JOBS for m in job.modules for one in m.split("|")}
    return {
        "athe_export": __version__,
        "python": sys.version.split()[0],
        "packages": {m: installed_version(m) for m in sorted(modules | {"numpy", "PIL", "yaml", "typer", "rich"})},
        "jobs": _jobs(),
        **_data(),
        "tuned": tuned_here(),
    }


def _jobs() -> list[dict[str, Any]]:
    jobs = [{"job": j.name, "ready": not j.missing, "missing": list(j.missing), "remedy": j.remedy} for j in JOBS]
    for job in (j for j in jobs if j["job"] == LITERT_JOB and j["ready"]):
        if why := litert_unavailable():  # installed, and yet it does not work
            job |= {"ready": False, "missing": [why]}
    return jobs


def _data() -> dict[str, Any]:
    root, cached = os.environ.get("ATHE_DATA_ROOT"), None
    with contextlib.suppress(MissingDependency):  # no user cache
        cached = str(user_cache()) if holds_cifar100(user_cache()) else None
    found = bool(root) and (holds_cifar100(Path(root or "")) or bool(packed_files(Path(root or ""))))
    return {"data_root": root, "cifar100": found, "cached": cached}
