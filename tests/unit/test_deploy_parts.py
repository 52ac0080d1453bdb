"""The parts of a deployment that need no device: destinations, verdicts, what ssh's words mean, wheels, and the shell program."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.specifiers import SpecifierSet
from packaging.tags import platform_tags

from athe_export.deploy.connection import Reply
from athe_export.deploy.destination import Destination, parse_destination
from athe_export.deploy.own_wheel import repacked
from athe_export.deploy.preflight import PYTHON, Device, health_checks, read_device, resource_checks, system_checks
from athe_export.deploy.refusals import device_failure, pip_said, ssh_failure
from athe_export.deploy.verified import verified
from athe_export.deploy.wheels import markers, missing_requirements, platforms, unreachable
from athe_export.errors import BundleIntegrityError, EnvironmentFailure, RemoteFailure, UsageError
from tests.conftest import ROOT

TO = Destination("pi@raspberrypi", "athe")
PROGRAM = (ROOT / "athe_export/deploy/device.sh").read_text()
PI = {
    "directory": "/home/pi/athe", "state": "absent", "writable": "yes", "machine": "aarch64", "bits": "64",
    "board": "Raspberry Pi 4 Model B Rev 1.4", "libc": "glibc 2.36", "python": "3.11.2", "python_bits": "64",
    "implementation": "CPython", "venv": "yes", "disk_kb": "20000000", "available_kb": "3500000", "governor": "ondemand",
    "khz": "600000", "max_khz": "1800000", "throttled": "throttled=0x0", "epoch": "1000",
}  # fmt: skip


def _verdicts(changes: Mapping[str, str]) -> dict[str, str]:
    device = Device(PI | changes)
    checks = (*system_checks(device, "python3"), *resource_checks(device, 10**9, 10**7), *health_checks(device, 1000.0))
    assert all(c.note for c in checks if c.verdict in ("warn", "fail"))
    return {c.name: c.verdict for c in checks if c.verdict != "pass"}


# where to


@pytest.mark.parametrize(
    ("text", "login", "folder"),
    [
        ("pi@raspberrypi:athe", "pi@raspberrypi", "athe"),
        ("raspberrypi:/srv/athe/", "raspberrypi", "/srv/athe"),
        ("pi@10.0.0.7:~/models/athe", "pi@10.0.0.7", "models/athe"),
        ("pi@[fe80::1%eth0]:athe", "pi@fe80::1%eth0", "athe"),
        ("pi@raspberrypi:my models", "pi@raspberrypi", "my models"),
    ],
)
def test_a_destination_is_read_as_scp_reads_it(text: str, login: str, folder: str) -> None:
    assert parse_destination(text) == Destination(login, folder)


@pytest.mark.parametrize(
    "text",
    [
        *("raspberrypi", "pi@raspberrypi:", ":athe", "pi@:athe", "pi@host:/", "pi@host:~", "pi@host:.", "pi@host:../athe"),
        *(
            "-oProxyCommand=reboot:athe",
            "-x@host:athe",
            "pi@-oX:athe",
            "pi@host:~other/athe",
            "pi@host:a\nb",
            "a b@host:athe",
        ),
    ],
)
def test_what_is_no_destination_is_refused_and_never_becomes_an_option_of_ssh(text: str) -> None:
    with pytest.raises(UsageError):
        parse_destination(text)


# what a device is


def test_a_raspberry_pi_4_in_good_order_passes_every_check() -> None:
    assert _verdicts({}) == {}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({"machine": "armv7l", "bits": "32", "python_bits": "32"}, {"architecture": "fail"}),
        ({"bits": "32", "python_bits": "32"}, {"architecture": "fail"}),
        ({"libc": "glibc 2.26"}, {"libc": "fail"}),
        ({"libc": "glibc 2.27"}, {}),
        ({"libc": ""}, {"libc": "fail"}),
        ({"python": "3.9.2"}, {"python": "fail"}),
        ({"python": "3.10.12"}, {"python": "fail"}),
        ({"python": ""}, {"python": "fail"}),
        ({"implementation": "PyPy"}, {"python": "fail"}),
        ({"venv": "no"}, {"python": "fail"}),
        ({"lacking": "flock"}, {"programs": "fail"}),
        ({"state": "foreign"}, {"folder": "fail"}),
        ({"writable": "no"}, {"folder": "fail"}),
        ({"disk_kb": "900000"}, {"disk": "fail"}),
        ({"available_kb": "100000"}, {"memory": "warn"}),
        ({"disk_kb": ""}, {"disk": "not told"}),
        ({"governor": "powersave"}, {"governor": "warn"}),
        ({"throttled": "throttled=0x50000"}, {"throttling": "warn"}),
        ({"throttled": "", "governor": "", "khz": ""}, {"throttling": "not told", "governor": "not told", "clock": "not told"}),
        ({"epoch": "2000"}, {"time": "warn"}),
    ],
)  # fmt: skip
def test_each_fact_decides_its_own_check(changes: dict[str, str], verdicts: dict[str, str]) -> None:
    assert _verdicts(changes) == verdicts


def test_the_python_that_a_device_needs_is_the_packages() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert SpecifierSet(needed) == SpecifierSet(f">={'.'.join(map(str, PYTHON))}")


# the program at the other end, run here


def _ask(folder: Path, *requests: str, at: Path) -> subprocess.CompletedProcess[str]:
    """What `device.sh` answers, run by this machine's sh in the folder `at`."""
    line = ["sh", "-c", PROGRAM, "sh", "TOKEN", str(folder), sys.executable]
    return subprocess.run(
        line, input="".join(r + "\n" for r in requests), capture_output=True, text=True, cwd=at, check=False
    )


def _facts(folder: Path, at: Path) -> Device:
    answer = _ask(folder, "facts", at=at).stdout.partition("TOKEN 0\n")[2]
    return read_device(answer.splitlines())


def test_a_device_tells_what_it_is_and_writes_nothing(tmp_path: Path) -> None:
    told = _facts(Path("athe"), tmp_path)
    assert told["directory"] == str(tmp_path / "athe") and told["state"] == "absent"
    assert told.python[:2] == sys.version_info[:2] and told["machine"] == os.uname().machine
    assert told.number("disk_kb") and told.number("available_kb") and told["venv"] == "yes"
    assert list(tmp_path.iterdir()) == []


def test_a_device_s_markers_and_platforms_are_those_that_its_own_pip_goes_by(tmp_path: Path) -> None:
    told = _facts(tmp_path, tmp_path)
    if not told.glibc:
        pytest.skip("another C library than glibc: no wheel of an engine would fit")
    here = {name: value for name, value in default_environment().items() if not name.startswith("platform_") or
            name in ("platform_machine", "platform_system", "platform_python_implementation")}  # fmt: skip
    assert markers(told) == here
    assert set(platforms(told)) == set(platform_tags())


def test_what_a_power_cut_left_is_removed_and_what_is_complete_is_kept(tmp_path: Path) -> None:
    for name in ("athe/.athe-export", "athe/incoming/bundle/half", "athe/venv-half/bin/python", "athe/venv-whole/complete"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert _ask(Path("athe"), "begin", at=tmp_path).returncode == 0
    assert {p.name for p in (tmp_path / "athe").iterdir()} == {".athe-export", "versions", "venv-whole"}


def test_a_runtime_that_another_deployment_has_completed_is_neither_installed_again_nor_removed(tmp_path: Path) -> None:
    complete = tmp_path / "athe/venv-k/complete"
    complete.parent.mkdir(parents=True)
    complete.write_text("numpy==1.0\n")
    (tmp_path / "athe/.athe-export").touch()
    done = _ask(Path("athe"), "begin", "install\tk\t./wheels/none.whl", "packages\tnone", at=tmp_path)
    assert done.returncode == 1 and done.stdout.count("TOKEN 0") == 3, done.stdout  # the last request fails
    assert complete.read_text() == "numpy==1.0\n"


@pytest.mark.parametrize(
    ("damage", "current", "answer", "left"),
    [
        (None, "used", "whole", True),
        ("lib/a.so", "used", "TOKEN 13", True),
        ("lib/a.so", "other", "absent", False),
        ("digests", "other", "absent", False),
        ("complete", "used", "absent", False),
    ],
)
def test_a_runtime_is_held_against_what_was_installed_and_a_damaged_one_makes_room_unless_it_is_in_use(
    tmp_path: Path, damage: str | None, current: str, answer: str, left: bool
) -> None:
    runtime = tmp_path / "athe/venv-used"
    (runtime / "lib").mkdir(parents=True)
    (runtime / "lib/a.so").write_text("an engine")
    (runtime / "complete").write_text("engine==1.0\n")
    with (runtime / "digests").open("w") as digests:
        subprocess.run(["sha256sum", "./lib/a.so"], cwd=runtime, stdout=digests, check=True)
    (tmp_path / "athe/.athe-export").touch()
    (tmp_path / "athe/current").symlink_to(f"versions/0123-{current}")
    (runtime / "lib/a.pyc").write_text("written as it runs")
    if damage == "lib/a.so":
        (runtime / damage).write_text("another")
    elif damage:
        (runtime / damage).unlink()
    done = _ask(Path("athe"), "begin", "whole\tused", at=tmp_path)
    assert answer in done.stdout.splitlines(), done.stdout
    assert runtime.exists() is left


def test_modules_that_lie_in_the_home_folder_are_not_taken_for_python_s_own(tmp_path: Path) -> None:
    for name in ("platform", "struct", "json", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    assert _facts(Path("athe"), tmp_path)["python"] and _facts(Path("athe"), tmp_path)["venv"] == "yes"
    python = tmp_path / "athe/venv-k/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (python.parents[1] / "complete").touch()
    (tmp_path / "athe/.athe-export").touch()
    (tmp_path / "athe/versions").mkdir()
    (tmp_path / "athe/versions/0123-k").symlink_to(ROOT / "tests/bundles/v1/tiny")
    done = _ask(Path("athe"), "begin", "verify\tk\tversions/0123-k", "switch\t0123-k", at=tmp_path)
    assert '"verdict": "pass"' in done.stdout, done.stdout
    line = [tmp_path / "athe/athe-export", "--version"]
    assert subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=True).stdout.startswith("athe-export ")


def test_a_request_that_fails_ends_the_program_and_removes_what_arrived(tmp_path: Path) -> None:
    done = _ask(Path("athe"), "begin", "packages\tnone", "keep\tnew", at=tmp_path)
    assert done.returncode == 1 and done.stdout.count("TOKEN") == 3, "it went on after a failure"
    done = _ask(Path("athe"), "begin", "put\tbundle/a\t3\t" + "0" * 64, "abc", at=tmp_path)
    assert done.stdout.rstrip().endswith("TOKEN 12")
    assert {p.name for p in (tmp_path / "athe").iterdir()} == {".athe-export", "versions"}


# words


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by "
         "'NameResolutionError(\"HTTPSConnection(host='pypi.org', port=443): Failed to resolve 'pypi.org' ([Errno -2] Name or "
         "service not known)\")': /simple/numpy/", True),
        ("WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError('<HTTPSConnection>: Failed to "
         "establish a new connection: [Errno 111] Connection refused')': /simple/numpy/", True),
        ("Could not fetch URL https://pypi.org/simple/numpy/: There was a problem confirming the ssl certificate: [SSL: "
         "CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate is not yet valid (_ssl.c:1006) - skipping", True),
        ("Looking in indexes: https://pypi.org/simple, https://www.piwheels.org/simple", False),
    ],
    ids=["no name", "no connection", "no certificate", "a wheel is missing"],
)  # fmt: skip
def test_an_index_that_pip_does_not_reach_is_told_from_one_without_a_wheel(said: str, expected: bool) -> None:
    missing = "ERROR: Could not find a version that satisfies the requirement numpy (from versions: none)"
    assert unreachable(f"{said}\n{missing}") is expected


def test_words_of_ssh_that_are_not_known_are_passed_on() -> None:
    error = ssh_failure("kex: something new\n", TO)
    assert "kex: something new" in error.what and "ssh -v pi@raspberrypi" in error.remedy


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("ssh: connect to host x port 22: No route to host", "raspberrypi cannot be reached"),
        ("Connection timed out during banner exchange", "raspberrypi cannot be reached"),
        ("Permissions 0644 for 'key' are too open.\nWARNING: UNPROTECTED PRIVATE KEY FILE!\npi@x: Permission denied (publickey).",
         "may be read by others"),
    ],
    ids=["no route", "no banner", "open key"],
)  # fmt: skip
def test_words_of_ssh_are_said_plainly(said: str, what: str) -> None:
    assert what in ssh_failure(said, TO).what


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("head: error writing 'standard output': No space left on device", "the disk of raspberrypi is full"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space", "the disk of raspberrypi is full"),
        ("mkdir: cannot create directory '/srv/athe': Permission denied", "pi@raspberrypi may not write there"),
        ("touch: cannot touch 'x': Read-only file system", "read-only"),
        ("something new", "writing failed there: something new"),
    ],
)
def test_words_of_a_device_are_said_plainly(said: str, what: str) -> None:
    assert what in device_failure(said, "writing", TO).what


def test_versions_that_exclude_each_other_are_said_as_pip_says_it() -> None:
    said = """Processing ./wheels/athe_export-0.1.0-py3-none-any.whl
ERROR: Cannot install athe-export[onnx]==0.1.0 because these package versions have conflicting dependencies.
The conflict is caused by:
    athe-export[onnx] 0.1.0 depends on onnxruntime>=1.22.0; extra == "onnx"
    The user requested (constraint) onnxruntime<1
To fix this you could try to:
1. loosen the range of package versions you've specified
2. remove package versions to allow pip attempt to solve the dependency conflict
ERROR: ResolutionImpossible: for help visit the documentation"""
    error = device_failure(pip_said(said.splitlines()), "installing", TO)
    assert "(constraint) onnxruntime<1" in error.what and "depends on onnxruntime>=1.22.0" in error.what


def test_a_verify_that_fails_there_fails_here_with_its_own_class_and_files() -> None:
    problem = {"path": "labels.txt", "problem": "changed"}
    error = {
        "code": 5,
        "kind": "bundle_integrity",
        "message": "changed",
        "where": "x",
        "remedy": "again",
        "files": [problem],
    }
    with pytest.raises(BundleIntegrityError) as found:
        verified(Reply(5, (*json.dumps({"error": error}, indent=2).splitlines(), "error: changed")), TO)
    assert found.value.files[0]._asdict() == problem and found.value.remedy == "again"


@pytest.mark.parametrize(("status", "said"), [(132, "SIGILL"), (137, "SIGKILL"), (139, "SIGSEGV")])
def test_an_engine_that_crashes_there_is_said(status: int, said: str) -> None:
    with pytest.raises(RemoteFailure, match=said) as found:
        verified(Reply(status, ()), TO)
    assert "--target" in found.value.remedy


def test_a_verify_without_a_verdict_is_never_a_pass() -> None:
    for lines in ((), ("{}",), ('{"verdict": "fail"}',), ("no json",)):
        with pytest.raises(RemoteFailure):
            verified(Reply(0, lines), TO)


# wheels


def _wheel(folder: Path, name: str, *requires: str) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


def test_what_only_the_device_s_python_needs_is_missed_and_what_it_does_not_need_is_not(tmp_path: Path) -> None:
    own = _wheel(tmp_path, "own", "engine; extra == 'litert'", "other-engine; extra == 'onnx'", "Plain_Package")
    wheels = [own, _wheel(tmp_path, "engine", "new>=2; python_version >= '3.13'", "old; python_version < '3.12'", "a[b]")]
    wheels += [_wheel(tmp_path, "plain_package"), _wheel(tmp_path, "a", "for-b; extra == 'b'", "for-c; extra == 'c'")]

    def missing(python: str, machine: str = "aarch64") -> list[str]:
        device = Device(PI | {"python": python, "machine": machine})
        return missing_requirements(wheels, own, "litert", markers(device))

    assert missing("3.11.2") == ["for-b", "old"]
    assert missing("3.13.5") == ["for-b", "new>=2"]
    assert missing_requirements([own, *wheels[2:]], own, "litert", markers(Device(PI))) == ["engine"]


def test_an_installed_package_becomes_the_wheel_that_it_was(tmp_path: Path, installed: Path) -> None:
    (site,) = installed.glob("lib/python*/site-packages")
    (distribution,) = importlib.metadata.Distribution.discover(name="athe-export", path=[str(site)])
    (built,) = installed.parent.glob("*.whl")
    again = repacked(distribution, tmp_path)
    assert again.name == built.name
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(built) as other:
        record = next(n for n in one.namelist() if n.endswith("RECORD"))
        assert {n: one.read(n) for n in one.namelist() if n != record} == {
            n: other.read(n) for n in other.namelist() if n != record
        }
        assert sorted(one.read(record).splitlines()) == sorted(other.read(record).splitlines())
    (tmp_path / "again").mkdir()
    assert repacked(distribution, tmp_path / "again").read_bytes() == again.read_bytes()


def test_an_installed_package_that_was_changed_makes_no_wheel(tmp_path: Path) -> None:
    info = tmp_path / "plain-1.0.dist-info"
    info.mkdir()
    (tmp_path / "plain.py").write_text("changed = True\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1.0\n")
    (info / "RECORD").write_text("plain.py,sha256=AAAA,3\nplain-1.0.dist-info/METADATA,,\nplain-1.0.dist-info/RECORD,,\n")
    (distribution,) = importlib.metadata.Distribution.discover(path=[str(tmp_path)])
    with pytest.raises(EnvironmentFailure, match="was changed"):
        repacked(distribution, tmp_path)
