"""What a deployment is to do on a device: the bundle, its runtime, the wheels to send, and the disk that they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from athe_export.deploy.own_wheel import own_wheel
from athe_export.deploy.preflight import PASS, Check, Device, resource_checks
from athe_export.deploy.version import Payload, runtime_key
from athe_export.deploy.wheels import collect_wheels, unpacked_bytes

_DOWNLOADED = 350 * 10**6  # of a runtime that the device downloads itself: wheels and what they unpack to
_CAMERA = 150 * 10**6  # more of that for OpenCV
_VENV = 40 * 10**6  # an empty one, with its pip


class Watch(Protocol):
    """Who is told of the progress."""

    def stage(self, name: str) -> None: ...
    def progress(self, step: str, done: int, total: int) -> None: ...
    def line(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """How to deploy: `target` and `python` as the command line takes them, `camera` for OpenCV too, `config` for ssh,
    `constraint` for pip; `batch` where no one can be asked."""

    target: str = "auto"
    offline: bool = False
    with_reference: bool = False
    camera: bool = False
    python: str = "python3"
    constraint: Path | None = None
    config: Path | None = None
    batch: bool = True


@dataclass(frozen=True)
class Plan:
    """What is to be done on a device: a runtime of this key, installed from the `collected` wheels where it is not there."""

    payload: Payload
    device: Device
    options: Options
    runtime: str
    installs: bool
    collected: tuple[Path, ...]

    @property
    def version(self) -> str:
        return self.payload.version(self.runtime)

    @property
    def extras(self) -> str:
        return _extras(self.payload, self.options)

    @property
    def wheels(self) -> tuple[Path, ...]:
        """To be sent, athe-export's first."""
        return self.collected if self.installs else ()

    @property
    def disk(self) -> int:
        """Bytes that it writes at most."""
        sent = self.payload.bytes + sum(w.stat().st_size for w in self.wheels)
        if not self.installs:
            return sent
        # compiled Python comes to half as much again of what is Python, and is counted as if all were
        if self.options.offline:
            return sent + _VENV + unpacked_bytes(self.wheels) * 3 // 2
        return sent + _VENV + _DOWNLOADED + (_CAMERA if self.options.camera else 0)

    def checks(self) -> tuple[Check, ...]:
        source = "from wheels sent along" if self.options.offline else "from the device's package index"
        found = f"{self.extras.replace(',', ', ')}, " + (f"to be installed {source}" if self.installs else "there already")
        return (Check("runtime", found, PASS), *resource_checks(self.device, self.disk, self.payload.graph_bytes))

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "runtime": {
                "key": self.runtime,
                "extras": self.extras.split(","),
                "installed": self.installs,
                "wheels": [w.name for w in self.wheels],
            },
            "files": sorted(self.payload.files),
            "disk_bytes": self.disk,
        }


def make_plan(chosen: Payload, device: Device, options: Options, folder: Path, watch: Watch) -> Plan:
    """Settles the runtime: the wheel of athe-export and, for a device without internet, all others, written to `folder`.

    Raises:
        MissingDependency, EnvironmentFailure: a wheel cannot be made, or there is none for the device.
    """
    watch.stage("wheels")
    own, extras = own_wheel(folder), _extras(chosen, options)
    wheels: tuple[Path, ...] = (own,)
    if options.offline:
        found = collect_wheels(own, extras, device, options.constraint, lambda text: watch.line(f"  {text}"))
        wheels = (own, *(w for w in found if w != own))
    others = [options.constraint] if options.constraint else []
    key = runtime_key(device.python, device["machine"], extras, wheels, others)
    return Plan(chosen, device, options, key, key not in device.runtimes, wheels)


def _extras(chosen: Payload, options: Options) -> str:
    return f"{chosen.target},camera" if options.camera else chosen.target
