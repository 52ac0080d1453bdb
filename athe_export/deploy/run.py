"""`deploy_bundle` and `roll_back`: preflight, transfer, install, verify there, and one switch at the end.

Until the switch nothing changes that the device uses: a version and a runtime lie beside those in use. What fails before is
removed by the device itself (`device.sh`), a lost connection included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from athe_export.deploy.connection import Connection, Reply, connected
from athe_export.deploy.destination import Destination
from athe_export.deploy.plan import Options, Plan, Watch, make_plan
from athe_export.deploy.preflight import Device, health_checks, read_device, require, system_checks
from athe_export.deploy.refusals import device_failure, pip_said
from athe_export.deploy.verified import verified
from athe_export.deploy.version import payload
from athe_export.deploy.wheels import no_wheel, unreachable
from athe_export.errors import AtheExportError, Interrupted, RemoteFailure, UsageError


@dataclass
class _Report:
    """What is known so far; a failure and Ctrl-C take it along. `remedy` is None as long as nothing has changed there."""

    document: dict[str, Any] = field(default_factory=dict)
    remedy: str | None = None

    @contextmanager
    def told(self) -> Iterator[None]:
        try:
            yield
        except AtheExportError as error:
            error.report = {"deploy": self.document} | error.report
            raise
        except KeyboardInterrupt:
            raise Interrupted("interrupted", remedy=self.remedy, report={"deploy": self.document}) from None


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
        require(checks, to)
        with tempfile.TemporaryDirectory(prefix="athe-export-") as folder:
            plan = make_plan(chosen, device, options, Path(folder), watch)
            checks = plan.checks()
            report.document["preflight"] += [c.to_json() for c in checks]
            require(checks, to)
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
            if not _runtime_is_whole(connection, previous.rpartition("-")[2], to):
                raise RemoteFailure(
                    "the runtime of the version before is damaged, or gone",
                    where=str(to),
                    remedy="deploy the bundle that you want there, which installs its runtime anew",
                )
            _verify_and_switch(connection, to, previous, f"versions/{previous}", report, watch)
    return report.document


def _carry_out(plan: Plan, connection: Connection, to: Destination, report: _Report, watch: Watch) -> None:
    watch.stage("transfer")
    _begin(connection, to)
    installs = not _runtime_is_whole(connection, plan.runtime, to)
    if installs != plan.installs:  # it is damaged, or another deployment has brought or removed it since the plan was made
        plan = replace(plan, installs=installs)
        require(plan.checks(), to)
        report.document |= plan.to_json()
    listed = _done(connection.ask("digests", plan.version), "reading the version that is there", to)
    arrived = {line.partition("  ./")[2]: line[:64] for line in listed} == plan.payload.digests
    _transfer(plan, arrived, connection, to, report, watch)
    watch.stage("install")
    if plan.installs:
        _install(plan, connection, to, watch)
    listed = _done(connection.ask("packages", plan.runtime), "reading the runtime that is there", to)
    report.document["runtime"]["packages"] = dict(line.split("==", 1) for line in listed if "==" in line)
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


def _runtime_is_whole(connection: Connection, runtime: str, to: Destination) -> bool:
    """Whether a runtime is there as it was installed; one that is damaged is removed.

    Raises:
        RemoteFailure: it is damaged, and the current version uses it.
    """
    connection.doing = "checking the runtime that is there"
    reply = connection.ask("whole", runtime)
    if reply.status == 13:
        raise RemoteFailure(
            "the runtime that is in use there is damaged: " + "; ".join(reply.lines[:3]),
            where=str(to),
            remedy=f"end what runs it, remove the folder venv-{runtime} there, and run this again; a worn or full card is "
            "one reason: look into `dmesg` there",
        )
    return "whole" in _done(reply, connection.doing, to)


def _transfer(plan: Plan, arrived: bool, connection: Connection, to: Destination, report: _Report, watch: Watch) -> None:
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


def _install(plan: Plan, connection: Connection, to: Destination, watch: Watch) -> None:
    own = plan.wheels[0].name
    options = ["--no-index", "--find-links", "wheels"] if plan.options.offline else []
    options += ["-c", "constraints.txt"] if plan.options.constraint else []
    connection.doing = "installing the runtime"

    def heard(line: str) -> None:
        if line.startswith(("Collecting ", "Processing ", "Installing ")):
            watch.line(f"  {line[:100]}")

    requirement = f"./wheels/{own}[{plan.extras}]"
    reply = connection.ask("install", plan.runtime, requirement, *options, heard=heard)
    if not reply.status:
        return
    if not plan.options.offline and unreachable(reply.text):
        raise RemoteFailure(
            "the package index cannot be reached from the device",
            where=str(to),
            remedy="add --offline, which collects the wheels here and sends them; or mend its network, clock or pip.conf",
        )
    raise no_wheel(reply.text, plan.device, str(to)) or device_failure(pip_said(reply.lines), connection.doing, to)


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
    connection.doing = "switching"
    connection.remedy = report.remedy = "either version may be current there, and both are whole; run it again"
    for name in ("switched", "current"):  # not known from here until it answers
        del report.document[name]
    reply = connection.ask("switch", version)
    if reply.status:
        error = device_failure(reply.text, connection.doing, to)
        error.remedy = f"{connection.remedy}; {error.remedy}" if error.remedy != error.remedy_of_kind else connection.remedy
        raise error
    report.document |= {"switched": version != report.document["was_current"], "current": version}
    connection.doing = "removing old versions"
    connection.remedy = report.remedy = "the new version is current; the next deployment removes them"
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


def _done(reply: Reply, doing: str, to: Destination) -> tuple[str, ...]:
    """The lines of an answer; raises RemoteFailure where a request was not done."""
    if reply.status:
        raise device_failure(reply.text, doing, to)
    return reply.lines


def _require_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise UsageError("there is no such file of constraints", where=str(path), remedy="check --constraint")
