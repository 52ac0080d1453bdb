"""Whether a device can take a bundle: what it tells of itself, held against what is needed, a verdict a check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from athe_export.bench.machine import throttling_words
from athe_export.deploy.destination import Destination
from athe_export.errors import RemoteFailure

PASS, WARN, FAIL, UNKNOWN = "pass", "warn", "fail", "not told"
MACHINES = ("aarch64", "x86_64")  # those that the engines have wheels for
PYTHON = (3, 11)  # requires-python in pyproject.toml
GLIBC = (2, 27)  # manylinux_2_27, which the engines' wheels ask for at least
_MB = 10**6
_ENGINE_MEMORY = 100 * _MB  # numpy, Pillow and an engine, before a graph is opened; `bench` prints peaks
_CLOCK_OFF_S = 120
_64_BIT = "install the 64-bit Raspberry Pi OS; a 32-bit system has no wheels of an engine, whatever its kernel says"


@dataclass(frozen=True)
class Check:
    """One line of the preflight: `found` as the device tells it, `verdict` pass, warn, fail or not told, and with all but a
    pass a `note`, which says what to do."""

    name: str
    found: str
    verdict: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"check": self.name, "found": self.found, "verdict": self.verdict, "note": self.note}


@dataclass(frozen=True)
class Device:
    """What a device has told, by name as `device.sh` writes it; of what it does not tell, an empty text or None."""

    told: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.told.get(name, "")

    def number(self, name: str) -> int | None:
        return int(self[name]) if self[name].isdigit() else None

    @property
    def python(self) -> tuple[int, ...]:
        """Version of its Python, as (3, 11, 2); empty where there is none."""
        return tuple(int(n) for n in re.findall(r"\d+", self["python"])[:3])

    @property
    def glibc(self) -> tuple[int, ...]:
        """(2, 36), or empty: another C library, or none told."""
        found = re.fullmatch(r"glibc (\d+)\.(\d+)", self["libc"])
        return (int(found[1]), int(found[2])) if found else ()

    @property
    def said(self) -> str:
        """In a message: `Python 3.11 on aarch64, glibc 2.36`."""
        return f"Python {'.'.join(map(str, self.python[:2]))} on {self['machine']}, {self['libc']}"

    @property
    def versions(self) -> tuple[str, str]:
        """IDs of the current version and of the one before; empty where there is none."""
        return self["current"].removeprefix("versions/"), self["previous"].removeprefix("versions/")

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Keys of the runtimes that are there, complete."""
        return tuple(re.findall(r"venv-(\w+)/complete", self["venvs"]))


def read_device(lines: Iterable[str]) -> Device:
    """From the answer to `facts`: a name and a value a line, set apart by a tab; `lacking` may come several times."""
    told: dict[str, str] = {}
    for name, _, value in (line.partition("\t") for line in lines):
        told[name] = f"{told[name]} {value}" if name == "lacking" and name in told else value
    return Device(told)


def system_checks(device: Device, python: str) -> tuple[Check, ...]:
    """Architecture, C library, Python, programs and folder: without these nothing can be installed."""
    return (_architecture(device), _libc(device), _python(device, python), *_programs(device), _folder(device))


def _architecture(device: Device) -> Check:
    bits = (
        "32" if "32" in (device["bits"], device["python_bits"]) else device["bits"]
    )  # a 64-bit kernel may run 32-bit programs
    found = f"{device['machine']}, {bits}-bit" + (f", {device['board']}" if device["board"] else "")
    if device["machine"] not in MACHINES or bits == "32":
        remedy = _64_BIT if bits == "32" or device["machine"].startswith("arm") else "use one of " + ", ".join(MACHINES)
        return Check("architecture", found, FAIL, remedy)
    return Check("architecture", found, PASS)


def _libc(device: Device) -> Check:
    needed = ".".join(map(str, GLIBC))
    if not device.glibc:
        found = device["libc"] or "no glibc"
        return Check("libc", found, FAIL, f"the engines' wheels need glibc {needed} or later: use a Debian-based system")
    if device.glibc < GLIBC:
        return Check("libc", device["libc"], FAIL, f"glibc {needed} is needed: install Raspberry Pi OS bookworm or later")
    return Check("libc", device["libc"], PASS)


def _python(device: Device, name: str) -> Check:
    needed = ".".join(map(str, PYTHON))
    if not device.python:
        return Check("python", f"no {name}", FAIL, "run `sudo apt install python3 python3-venv`, or name one with --python")
    found = f"{device['implementation']} {device['python']}"
    if device.python < PYTHON or device["implementation"] != "CPython":
        remedy = f"CPython {needed} or later is needed: Raspberry Pi OS bookworm has it; or name another with --python"
        return Check("python", found, FAIL, remedy)
    if device["venv"] != "yes":
        return Check("python", f"{found} without venv", FAIL, "run `sudo apt install python3-venv`")
    return Check("python", found, PASS)


def _programs(device: Device) -> tuple[Check, ...]:
    if not device["lacking"]:
        return ()
    return (Check("programs", f"no {device['lacking']}", FAIL, "run `sudo apt install coreutils util-linux sed mawk`"),)


def _folder(device: Device) -> Check:
    found, state = device["directory"], device["state"]
    if state in ("foreign", "file"):
        kind = "a file" if state == "file" else "a folder of something else"
        return Check("folder", f"{found}, {kind}", FAIL, "name another folder; what is there is left alone")
    if device["writable"] != "yes":
        return Check("folder", found, FAIL, "it may not be written: name a folder of that user, or change its owner")
    return Check("folder", found, PASS)


def resource_checks(device: Device, disk: int, graphs: int) -> tuple[Check, ...]:
    """Disk and memory, for so many bytes to be written and graphs of so many bytes."""
    return (
        _enough("disk", device.number("disk_kb"), disk, FAIL, "free space there, for one with `sudo apt clean`"),
        _enough("memory", device.number("available_kb"), _ENGINE_MEMORY + 2 * graphs, WARN,
                "verify may be ended for want of memory: end other programs there"),
    )  # fmt: skip


def _enough(name: str, available_kb: int | None, needed: int, verdict: str, remedy: str) -> Check:
    if available_kb is None:
        return Check(name, "not told", UNKNOWN, f"{_mb(needed)} are needed")
    found = f"{available_kb * 1024 // _MB:,} MB free, {_mb(needed)} needed"
    return Check(name, found, PASS) if available_kb * 1024 >= needed else Check(name, found, verdict, remedy)


def _mb(count: int) -> str:
    return f"{-(-count // _MB):,} MB"


def health_checks(device: Device, now: float) -> tuple[Check, ...]:
    """Governor, clocks and throttling: what makes a device slow or unreliable; these warn. `now` is the time here, in s."""
    return (_governor(device), _throttling(device), _cpu_clock(device), _time(device, now))


def _governor(device: Device) -> Check:
    found = device["governor"]
    if "powersave" in found.split():
        return Check("governor", found, WARN, "the CPU stays at its lowest clock; set the governor to ondemand")
    return Check("governor", found, PASS) if found else Check("governor", "not told", UNKNOWN)


def _throttling(device: Device) -> Check:
    bits = re.search(r"0x([0-9a-fA-F]+)", device["throttled"])
    if bits is None:
        return Check("throttling", "not told", UNKNOWN, "only a Raspberry Pi's vcgencmd tells it")
    words = throttling_words(int(bits[1], 16))
    if words:
        return Check("throttling", ", ".join(words), WARN, "use the power supply made for the board, and cool it")
    return Check("throttling", "none since boot", PASS)


def _cpu_clock(device: Device) -> Check:
    now, top = device.number("khz"), device.number("max_khz")
    if now is None or top is None:
        return Check("clock", "not told", UNKNOWN)
    return Check("clock", f"{now / 1000:.0f} MHz now, {top / 1000:.0f} MHz at most", PASS)


def _time(device: Device, now: float) -> Check:
    epoch = device.number("epoch")
    if epoch is None:
        return Check("time", "not told", UNKNOWN)
    off = epoch - now
    if abs(off) < _CLOCK_OFF_S:
        return Check("time", "as here", PASS)
    found = f"{abs(off) / 3600:.1f} hours {'ahead' if off > 0 else 'behind'}"
    return Check(
        "time", found, WARN, "downloads there fail on certificates of another time: `sudo timedatectl set-ntp true`"
    )


def require(checks: Sequence[Check], to: Destination) -> None:
    """Raises RemoteFailure where a check has failed: all that failed, and what to do about each."""
    failed = [c for c in checks if c.verdict == FAIL]
    if not failed:
        return
    said = "; ".join(f"{c.name}: {c.found}" for c in failed)
    remedy = "; ".join(c.note for c in failed)
    raise RemoteFailure(f"the device cannot take the bundle: {said}", where=str(to), remedy=remedy)
