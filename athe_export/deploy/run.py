"""`deploy_bundle` and `roll_back`: preflight, transfer, install, verify there, and one switch at the end.

Until the switch nothing changes that the device uses: a version and a runtime lie beside those in use. What fails before is
removed by the device itself (`device.sh`), a lost connection included.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from athe_export.deploy.connection import Connection, Reply, connected
from athe_export.deploy.destination import Destination
from athe_export.deploy.own_wheel import own_wheel
from athe_export.deploy.preflight import (
    PASS,
    Check,
    Device,
    health_checks,
    read_device,
    require,
    resource_checks,
    system_checks,
)
from athe_export.deploy.refusals import device_failure
from athe_export.deploy.verified import verified
from athe_export.deploy.version import Payload, payload, runtime_key
from athe_export.deploy.wheels import collect_wheels, no_wheel, unpacked_bytes
from athe_export.errors import AtheExportError, EnvironmentFailure, RemoteFailure

STAGES = ("connect", "preflight", "wheels", "transfer", "install", "verify", "switch")
_DOWNLOADED = 350 * 10**6  # of a runtime that the device downloads itself: wheels and what they unpack to
_VENV = 40 * 10**6  # an empty one, with its pip


class Watch(Protocol):
    """Who is told of the progress."""

    def stage(self, name: str) -> None: ...
    def progress(self, step: str, done: int, total: int) -> None: ...
    def line(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """How to deploy: `target` and `python` as the command line takes them, `config` for ssh, `constraint` for pip; `batch`
    where no one can be asked."""

    target: str = "auto"
    offline: bool = False
    with_reference: bool = False
    python: str = "python3"
    constraint: Path | None = None
    config: Path | None = None
    batch: bool = True


@dataclass
class _Report:
    """What is known so far; a failure takes it along."""

    document: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def told(self) -> Iterator[None]:
        try:
            yield
        except AtheExportError as error:
            error.report = {"deploy": self.document} | error.report
            raise


def deploy_bundle(path: Path, to: Destination, options: Options, watch: Watch, dry_run: bool = False) -> dict[str, Any]:
    """Brings a bundle to a device, verifies it there and makes it the current one; or says what that would do.

    Returns:
        The document of `deploy --json`.

    Raises:
        BundleIntegrityError, UsageError: the bundle is not whole or lacks the target; nothing was sent.
        RemoteFailure: no connection, a device that cannot take it, a step that failed there. What was current stays so.
        MissingDependency: ssh, pip or a wheel for the device is missing.
        AtheExportError: `verify` failed there, in a class of its own.
    """
    _require_file(options.constraint)
    chosen = payload(path, options.target, options.with_reference)
    report = _Report(_heading(to, dry_run) | chosen.to_json())
    watch.stage("connect")
    with report.told(), connected(to, options.python, options.batch, options.config) as connection:
        watch.stage("preflight")
        device = _device(connection, report)
        checks = system_checks(device, options.python)
        report.document["preflight"] = [c.to_json() for c in (*checks, *health_checks(device, time.time()))]
        require(checks, to, {})
        with tempfile.TemporaryDirectory(prefix="athe-export-") as folder:
            plan = _plan(chosen, device, options, Path(folder), watch)
            checks = plan.checks()
            report.document["preflight"] += [c.to_json() for c in checks]
            require(checks, to, {})
            report.document |= plan.to_json()
            if not dry_run:
                _carry_out(plan, connection, to, report, watch)
    return report.document


def roll_back(to: Destination, options: Options, watch: Watch, dry_run: bool = False) -> dict[str, Any]:
    """Makes the version before the current one current again, once `verify` has passed on it; the two change places.

    Returns:
        The document of `deploy --rollback --json`.

    Raises:
        RemoteFailure: no connection, or no version to go back to.
        AtheExportError: `verify` failed there, in a class of its own; what was current stays current.
    """
    report = _Report(_heading(to, dry_run))
    watch.stage("connect")
    with report.told(), connected(to, options.python, options.batch, options.config) as connection:
        current, previous = _device(connection, report).versions
        if not previous or previous == current:
            raise RemoteFailure(
                "there is no version to go back to" + ("" if current else ": nothing was deployed there"),
                where=str(to),
                remedy="deploy the bundle that you want there",
            )
        report.document["version"] = previous
        if not dry_run:
            _begin(connection, to)
            _verify_and_switch(connection, to, previous, f"versions/{previous}", report, watch)
    return report.document


@dataclass(frozen=True)
class _Plan:
    """What is to be done on a device. `wheels` are to be sent, athe-export's first; none where the runtime is there."""

    payload: Payload
    device: Device
    options: Options
    runtime: str
    wheels: tuple[Path, ...]

    @property
    def version(self) -> str:
        return self.payload.version(self.runtime)

    @property
    def installs(self) -> bool:
        return self.runtime not in self.device.runtimes

    @property
    def disk(self) -> int:
        """Bytes that it writes at most."""
        sent = self.payload.bytes + sum(w.stat().st_size for w in self.wheels)
        if not self.installs:
            return sent
        # compiled Python comes to half as much again of what is Python, and is counted as if all were
        return sent + _VENV + (unpacked_bytes(self.wheels) * 3 // 2 if self.options.offline else _DOWNLOADED)

    def checks(self) -> tuple[Check, ...]:
        source = "from wheels sent along" if self.options.offline else "from the device's package index"
        found = f"{self.payload.target}, " + (f"to be installed {source}" if self.installs else "there already")
        return (Check("runtime", found, PASS), *resource_checks(self.device, self.disk, self.payload.graph_bytes))

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "runtime": {"key": self.runtime, "installed": self.installs, "wheels": [w.name for w in self.wheels]},
            "files": sorted(self.payload.files),
            "disk_bytes": self.disk,
        }


def _plan(chosen: Payload, device: Device, options: Options, folder: Path, watch: Watch) -> _Plan:
    watch.stage("wheels")
    own = own_wheel(folder)
    wheels: tuple[Path, ...] = (own,)
    if options.offline:
        found = collect_wheels(own, chosen.target, device, options.constraint, lambda text: watch.line(f"  {text}"))
        wheels = (own, *(w for w in found if w != own))
    extras = [options.constraint] if options.constraint else []
    key = runtime_key(device.python, device["machine"], chosen.target, wheels, extras)
    return _Plan(chosen, device, options, key, () if key in device.runtimes else wheels)


def _carry_out(plan: _Plan, connection: Connection, to: Destination, report: _Report, watch: Watch) -> None:
    watch.stage("transfer")
    _begin(connection, to)
    there = {line.partition("  ./")[2]: line[:64] for line in connection.ask("digests", plan.version).lines}
    arrived = there == plan.payload.digests
    _transfer(plan, arrived, connection, to, report, watch)
    watch.stage("install")
    if plan.installs:
        _install(plan, connection, to, watch)
    report.document["runtime"]["packages"] = _packages(connection.ask("packages", plan.runtime).lines)
    place = f"versions/{plan.version}" if arrived else "incoming/bundle"
    _verify_and_switch(connection, to, plan.version, place, report, watch)


def _begin(connection: Connection, to: Destination) -> None:
    connection.doing = "preparing the folder"
    reply = connection.ask("begin")
    if reply.status == 10:
        raise RemoteFailure(reply.text, where=str(to), remedy="name another folder; what is there is left alone")
    if reply.status == 11:
        raise RemoteFailure(
            "another deployment to this folder is at work", where=str(to), remedy="wait for it to end, and run this again"
        )
    _done(reply, "preparing the folder", to)


def _transfer(plan: _Plan, arrived: bool, connection: Connection, to: Destination, report: _Report, watch: Watch) -> None:
    files = {f"wheels/{w.name}": w for w in plan.wheels}
    files |= {} if arrived else {f"bundle/{name}": path for name, path in plan.payload.files.items()}
    if plan.options.constraint and plan.installs:
        files["constraints.txt"] = plan.options.constraint
    total, done = sum(p.stat().st_size for p in files.values()), 0

    def sent(count: int) -> None:
        nonlocal done
        done += count
        watch.progress("KB sent", done // 1000, total // 1000)

    connection.doing = "sending files"
    for name, path in files.items():
        reply = connection.put(name, path, sent)
        if reply.status == 12:
            raise RemoteFailure(f"a file arrived changed: {name}", where=str(to))
        _done(reply, f"writing {name}", to)
    report.document["sent"] = {"files": len(files), "bytes": total}


def _install(plan: _Plan, connection: Connection, to: Destination, watch: Watch) -> None:
    own = plan.wheels[0].name
    options = ["--no-index", "--find-links", "wheels"] if plan.options.offline else []
    options += ["-c", "constraints.txt"] if plan.options.constraint else []
    connection.doing = "installing the runtime"

    def heard(line: str) -> None:
        if line.startswith(("Collecting ", "Processing ", "Installing ")):
            watch.line(f"  {line[:100]}")

    requirement = f"./wheels/{own}[{plan.payload.target}]"
    reply = connection.ask("install", plan.runtime, requirement, *options, heard=heard)
    if reply.status:
        raise no_wheel(reply.text, plan.device, str(to)) or device_failure(_pip_said(reply), connection.doing, to)


def _pip_said(reply: Reply) -> str:
    """What of pip's output tells why it failed."""
    told = [line for line in reply.lines if re.search("error|no space|conflict|depends on|requested", line, re.I)]
    return "\n".join(told) or reply.text


def _verify_and_switch(
    connection: Connection, to: Destination, version: str, place: str, report: _Report, watch: Watch
) -> None:
    """Verifies a version where it lies, in its own runtime, and makes it the current one."""
    watch.stage("verify")
    connection.doing = "verifying"
    report.document["verify"] = verified(connection.ask("verify", version.rpartition("-")[2], place), to)
    watch.stage("switch")
    connection.doing = "putting it in place"
    if place == "incoming/bundle":
        _done(connection.ask("keep", version), connection.doing, to)
    connection.doing, connection.remedy = (
        "switching",
        "either version may be current there, and both are whole; run it again",
    )
    _done(connection.ask("switch", version), connection.doing, to)
    report.document |= {"switched": version != report.document["was_current"], "current": version}
    connection.doing, connection.remedy = (
        "removing old versions",
        "the new version is current; the next deployment removes them",
    )
    left = connection.ask("prune")
    report.document["notes"] = [f"old versions could not be removed: {left.text}"] if left.status else []


def _device(connection: Connection, report: _Report) -> Device:
    connection.doing = "asking what the device is"
    device = read_device(connection.ask("facts").lines)
    current, previous = device.versions
    report.document |= {"folder": device["directory"], "was_current": current, "was_previous": previous, "current": current}
    return device


def _heading(to: Destination, dry_run: bool) -> dict[str, Any]:
    return {"destination": str(to), "dry_run": dry_run, "switched": False}


def _packages(lines: Sequence[str]) -> Mapping[str, str]:
    return dict(line.split("==", 1) for line in lines if "==" in line)


def _done(reply: Reply, doing: str, to: Destination) -> None:
    """Raises RemoteFailure where a request was not done."""
    if reply.status:
        raise device_failure(reply.text, doing, to)


def _require_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise EnvironmentFailure("there is no such file of constraints", where=str(path), remedy="check --constraint")
