"""The wheels that a device needs and cannot download: collected here by pip for its Python, processor and C library."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from athe_export.deploy.preflight import Device
from athe_export.errors import EnvironmentFailure, MissingDependency

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Say = Callable[[str], None]
_ROUNDS = 8
_OFFLINE = r"after connection broken by|problem confirming the ssl certificate|Read timed out"  # words of pip 22 to 26
_ABSENT = re.compile(
    r"No matching distribution found for ([^\s(;]+)|Could not find a version that satisfies the requirement ([^\s(;]+)"
)


def collect_wheels(own: Path, extras: str, device: Device, constraint: Path | None, say: Say) -> tuple[Path, ...]:
    """Puts every wheel that `own[extras]` needs on the device beside `own`; `say` is told what pip collects.

    pip picks wheels for another platform, but decides by this machine which requirements hold (`; python_version < ...`).
    So requirements are read again from the collected wheels under the device's markers, until none is missing.

    Raises:
        MissingDependency: pip or packaging is missing here, or there is no wheel for the device.
        EnvironmentFailure: the index cannot be reached.
    """
    for module in ("pip", "packaging"):
        if find_spec(module) is None:
            raise MissingDependency(f"to collect wheels, {module} is missing here", remedy=f"pip install {module}")
    wanted = [f"{own}[{extras}]"]
    for _ in range(_ROUNDS):
        _download(wanted, own.parent, device, constraint, say)
        wheels = tuple(sorted(own.parent.glob("*.whl")))
        wanted = missing_requirements(wheels, own, extras, markers(device))
        if not wanted:
            return wheels
    raise EnvironmentFailure("pip does not collect what is missing: " + ", ".join(wanted), where=str(own.parent))


def platforms(device: Device) -> tuple[str, ...]:
    """Platform tags that the device's pip would take, newest first (PEP 600, and the older names of PEP 599)."""
    machine, (major, minor) = device["machine"], device.glibc
    named = [f"manylinux_{major}_{n}_{machine}" for n in range(minor, 16, -1)]
    older = [f"manylinux_{major}_{n}_{machine}" for n in range(16, 4, -1)] if machine == "x86_64" else []
    legacy = ["manylinux2010_x86_64", "manylinux1_x86_64"] if machine == "x86_64" else []
    return (*named, f"manylinux2014_{machine}", *older, *legacy, f"linux_{machine}")


def markers(device: Device) -> Mapping[str, str]:
    """The device's environment markers (PEP 508)."""
    version = ".".join(map(str, device.python))
    return {
        "python_version": ".".join(map(str, device.python[:2])),
        "python_full_version": version,
        "implementation_version": version,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": device["machine"],
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }


def missing_requirements(wheels: Sequence[Path], own: Path, extras: str, environment: Mapping[str, str]) -> list[str]:
    """What `own[extras]` needs under these markers and no wheel here is, as pip takes it."""
    from packaging.utils import canonicalize_name

    here = {canonicalize_name(w.name.partition("-")[0]): w for w in wheels}
    start = canonicalize_name(own.name.partition("-")[0])
    ahead, seen, missing = [(start, extra) for extra in extras.split(",")], set(), {}
    while ahead:
        step = ahead.pop()
        if step in seen:
            continue
        seen.add(step)
        for needed in _requirements(here[step[0]], {**environment, "extra": step[1]}):
            name = canonicalize_name(needed.name)
            if name in here:
                ahead += [(name, e) for e in ("", *needed.extras)]
            else:
                missing[name] = f"{needed.name}{needed.specifier}"
    return sorted(missing.values())


def _requirements(wheel: Path, environment: Mapping[str, str]) -> list[Requirement]:
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    found = [Requirement(str(line)) for line in lines]
    return [r for r in found if r.marker is None or r.marker.evaluate(dict(environment))]


def unpacked_bytes(wheels: Sequence[Path]) -> int:
    """What these take once installed, without compiled Python."""
    total = 0
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            total += sum(entry.file_size for entry in archive.infolist())
    return total


def unreachable(said: str) -> bool:
    """Whether a pip that failed did not get through to its index: no network, no name, no certificate that holds."""
    return re.search(_OFFLINE, said) is not None


def no_wheel(said: str, device: Device, where: str) -> MissingDependency | None:
    """The failure of a pip that finds no wheel for the device; None where pip failed of something else."""
    found = _ABSENT.search(said)
    if found is None:
        return None
    return MissingDependency(
        f"there is no wheel of {found[1] or found[2]} for {device.said}",
        where=where,
        remedy="name another engine with --target, another interpreter there with --python, or where such a wheel is with "
        "PIP_FIND_LINKS",
    )


def _download(wanted: list[str], folder: Path, device: Device, constraint: Path | None, say: Say) -> None:
    version = ".".join(map(str, device.python[:2]))
    line = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    line += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, "-d", str(folder)]
    line += [word for p in platforms(device) for word in ("--platform", p)]
    line += ["-c", str(constraint)] if constraint else []
    said: list[str] = []
    with subprocess.Popen([*line, *wanted], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for text in pip.stdout:
            said.append(text.strip())
            if text.startswith("Collecting "):
                say(text.strip())
    if pip.returncode == 0:
        return
    whole = "\n".join(said)
    if unreachable(whole):
        raise EnvironmentFailure(
            "the package index cannot be reached from here",
            remedy="connect this machine, or name a folder of wheels with PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR",
        )
    where = "this machine's package index"
    errors = [text for text in said if text.startswith("ERROR")] or said[-3:]
    raise no_wheel(whole, device, where) or EnvironmentFailure("pip: " + "\n  ".join(errors), where=where)
