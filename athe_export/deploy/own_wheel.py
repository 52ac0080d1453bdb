"""athe-export itself as a wheel, so that a device runs the very version that deploys: built from a checkout, or put together
again from what pip has installed."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import athe_export
from athe_export.errors import EnvironmentFailure, MissingDependency

_WRITTEN_BY_PIP = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def own_wheel(folder: Path) -> Path:
    """Writes the wheel of this athe-export into `folder`: the same bytes whenever the same is asked for.

    Raises:
        MissingDependency: it runs from a checkout, and hatchling or pip is not installed.
        EnvironmentFailure: it could not be built, or its files are not as they were installed.
    """
    root = Path(athe_export.__file__).parents[1]
    if (root / "pyproject.toml").is_file():
        return _built(root, folder)
    return repacked(importlib.metadata.distribution("athe-export"), folder)


def _built(root: Path, folder: Path) -> Path:
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None:
        raise MissingDependency(
            "athe-export runs from a checkout here, and its wheel cannot be built: pip or hatchling is missing",
            where=str(root),
            remedy="pip install hatchling",
        )
    line = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    line += ["--no-build-isolation", "-w", str(folder), str(root)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("athe_export-*.whl"))
    if done.returncode or not found:
        said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise EnvironmentFailure(f"the wheel of athe-export could not be built: {said}", where=str(root))
    return found[0]


def repacked(distribution: importlib.metadata.Distribution, folder: Path) -> Path:
    """Puts an installed distribution back into the wheel it came in, but for the order of files and their times.

    The format is that of PEP 427 (binary distribution format). Scripts are left out, which pip writes from the entry points.

    Raises:
        EnvironmentFailure: a file is missing or was changed since it was installed, or there is no list of files.
    """
    name = distribution.metadata["Name"].replace("-", "_")
    path = folder / f"{name}-{distribution.version}-{_tags(distribution)}.whl"
    rows, record = [], ""
    with zipfile.ZipFile(path, "w") as wheel:  # stored: what is large in it are weights, which do not become smaller
        for file in sorted(distribution.files or (), key=str):
            if file.name == "RECORD" and file.parent.suffix == ".dist-info":
                record = str(file)
            if ".." in file.parts or file.suffix == ".pyc" or file.name in _WRITTEN_BY_PIP:
                continue
            content = _content(file)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            if file.hash is not None and file.hash.mode == "sha256" and file.hash.value != digest:
                raise EnvironmentFailure(
                    "was changed since it was installed, so no wheel can be made of it",
                    where=str(file.locate()),
                    remedy=f"install {distribution.metadata['Name']} again",
                )
            rows.append((str(file), f"sha256={digest}", str(len(content))))
            wheel.writestr(_entry(str(file)), content)
        if not record:
            raise EnvironmentFailure(f"{name} was not installed by pip, so no wheel can be made of it")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (record, "", "")])
        wheel.writestr(_entry(record), text.getvalue())
    return path


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980, so that the same files are the same bytes
    entry.external_attr = 0o644 << 16
    return entry


def _content(file: importlib.metadata.PackagePath) -> bytes:
    try:
        return Path(str(file.locate())).read_bytes()
    except OSError as err:
        raise EnvironmentFailure(
            f"a file of an installed package cannot be read: {err.strerror}", where=str(file.locate())
        ) from err


def _tags(distribution: importlib.metadata.Distribution) -> str:
    """As in a wheel's name: `cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64`."""
    lines = (distribution.read_text("WHEEL") or "").splitlines()
    tags = [line.partition(":")[2].strip().split("-") for line in lines if line.startswith("Tag:")]
    return "-".join(".".join(dict.fromkeys(part)) for part in zip(*tags, strict=True)) or "py3-none-any"
