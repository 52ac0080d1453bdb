"""What serves on a device survives whatever becomes of the next deployment: cut lines, kills, full disks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from athe_export.bundle.reader import open_bundle
from tests.conftest import ROOT
from tests.integration.conftest import Deployer, furnish, index
from tests.sshd import Device, Line, device
from tests.tools import Outcome, error_of, require_one_message

Make = Callable[[str], Path]

pytestmark = pytest.mark.device


def _current(deploy: Deployer) -> str:
    """The name of the bundle that serves, every file of which was checked."""
    bundle = open_bundle(deploy.device.folder / "current")
    bundle.check()
    return bundle.manifest.name


def _settled(deploy: Deployer) -> None:
    """Waits until the other end has noticed, and put itself in order."""
    with (deploy.device.folder / ".athe-export").open("a") as lock:
        for _ in range(1200):
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.05)
    pytest.fail("the other end holds its lock a minute after the end")


@contextlib.contextmanager
def _line(deploy: Deployer, cut_after: int | None = None) -> Iterator[Line]:
    """Puts a line of ours between ssh and sshd."""
    line = Line(deploy.device.port, cut_after)
    deploy.device.configure(Port=line.port, HostKeyAlias=f"[127.0.0.1]:{deploy.device.port}")
    try:
        yield line
    finally:
        deploy.device.configure()
        line.close()


def test_a_connection_that_is_cut_anywhere_leaves_what_serves_and_the_next_one_goes_through(
    deploy: Deployer, renamed: Make
) -> None:
    before, bundle, to = deploy.still(), renamed("new"), deploy.device.destination
    size = sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file() and p.name != "reference.npz")
    login = (ROOT / "athe_export/deploy/device.sh").stat().st_size  # which goes with it
    # while logging in, at the first request, with the first files, and when the last one is nearly there
    for place in (1000, login + 4_000, login + 12_000, size // 2, size - 30_000):
        with _line(deploy, place) as line:
            ended = deploy(bundle, to, "--json")
        error = error_of(ended, 7, "remote")
        require_one_message(ended, 7)
        assert line.passed >= place, "it ended before the line was cut"
        assert ("could not connect" if place == 1000 else "connection was lost") in error["message"]
        _settled(deploy)
        assert deploy.still() == before
    deploy.serving()
    with _line(deploy) as line:
        assert deploy(bundle, to).code == 0
        assert line.passed > size, "the bundle did not go through the line"
    assert _current(deploy) == "new"


def _heeding() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which these tests may have been started without


def _stopped_at(deploy: Deployer, stage: str, stop: Callable[[subprocess.Popen[str]], None], *arguments: object) -> None:
    """Deploys, and stops it as soon as it announces a stage."""
    line = deploy.line(*arguments)
    surroundings = deploy.environment()
    with subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, env=surroundings, start_new_session=True, preexec_fn=_heeding
    ) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if said.strip() == stage:
                stop(process)
                break
        else:
            pytest.fail(f"it ended before stage {stage!r}")


@pytest.mark.parametrize("stage", ["install", "verify"])
def test_a_deployment_that_is_killed_leaves_what_serves_and_does_not_hinder_the_next(
    deploy: Deployer, renamed: Make, tmp_path: Path, stage: str
) -> None:
    before, to = deploy.still(), deploy.device.destination
    versions = tmp_path / "versions.txt"  # a runtime that is not there yet
    versions.write_text("rich>=13\n")
    _stopped_at(deploy, stage, lambda process: process.kill(), renamed("new"), to, "--constraint", versions)
    _settled(deploy)
    assert deploy.still() == before
    assert deploy(renamed("next"), to).code == 0
    assert _current(deploy) == "next"


def test_a_deployment_that_is_killed_while_it_switches_leaves_one_version_or_the_other(
    deploy: Deployer, renamed: Make
) -> None:
    to = deploy.device.destination
    _stopped_at(deploy, "switch", lambda process: process.kill(), renamed("new"), to)
    _settled(deploy)
    assert _current(deploy) in ("tiny", "new")
    assert deploy(renamed("next"), to).code == 0
    assert _current(deploy) == "next"


def test_an_interrupt_ends_it_in_good_order(deploy: Deployer, renamed: Make) -> None:
    before = deploy.still()

    def interrupt(process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to ssh too
        assert process.stderr is not None
        assert "error: interrupted" in process.stderr.read()
        assert process.wait() == 130

    _stopped_at(deploy, "transfer", interrupt, renamed("new"), deploy.device.destination)
    _settled(deploy)
    assert deploy.still() == before


def test_an_interrupt_after_the_switch_says_that_the_new_version_serves(deploy: Deployer, renamed: Make) -> None:
    device = deploy.device
    pruning = device.home / "pruning"
    device.fake("ls", f'case $* in */versions/*) touch "{pruning}"; sleep 60;; esac; exec /usr/bin/ls "$@"')
    line = deploy.line(renamed("new"), device.destination, "--json")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=deploy.environment(), start_new_session=True, preexec_fn=_heeding, **streams) as process:
        while not pruning.exists() and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    ended = Outcome(process.returncode, out, err)
    error = error_of(ended, 130, "interrupted")
    found = ended.document["deploy"]
    assert "the new version is current" in error["remedy"] and found["switched"] is True
    assert (device.folder / "current").readlink().name == found["current"] != found["was_current"]
    assert _current(deploy) == "new"


def test_a_switch_that_fails_leaves_the_version_to_go_back_to(deploy: Deployer, renamed: Make, tmp_path: Path) -> None:
    to, device = deploy.device.destination, deploy.device
    (tmp_path / "versions.txt").write_text("rich>=13\n")
    assert deploy(renamed("second"), to).code == 0
    before = deploy.still()
    device.fake("mv", 'case $* in -fT*/current) echo "mv: Input/output error"; exit 1;; esac; exec /usr/bin/mv "$@"')
    ended = deploy(renamed("third"), to, "--json")
    assert "either version may be current" in error_of(ended, 7, "remote")["remedy"]
    assert "current" not in ended.document["deploy"]
    assert deploy.still() == before
    device.fake("mv", 'case $* in -fT*/previous) echo "mv: Input/output error"; exit 1;; esac; exec /usr/bin/mv "$@"')
    error_of(deploy(renamed("fourth"), to, "--constraint", tmp_path / "versions.txt", "--json"), 7, "remote")
    assert _current(deploy) == "fourth"
    deploy.serving()
    (device.fakes / "mv").unlink()
    assert deploy(to, "--rollback").code == 0
    assert _current(deploy) == "tiny"


def test_a_signal_does_not_end_a_switch_half_way(deploy: Deployer, renamed: Make) -> None:
    before = (deploy.device.folder / "current").readlink()
    deploy.device.fake("mv", 'case $* in -fT*/current) kill -TERM $PPID; sleep 0.1;; esac; exec /usr/bin/mv "$@"')
    assert deploy(renamed("new"), deploy.device.destination).code == 0
    assert _current(deploy) == "new" and (deploy.device.folder / "previous").readlink() == before


def test_a_device_that_ends_the_session_is_said_and_what_it_could_not_remove_goes_with_the_next(
    deploy: Deployer, renamed: Make
) -> None:
    before = deploy.still()
    # what takes a file ends the shell that it belongs to, and its sshd, as a power cut does
    deploy.device.fake("head", 'sshd=$(sed -n "s/^PPid:[^0-9]*//p" /proc/$PPID/status); kill -9 "$PPID" "$sshd"')
    ended = deploy(renamed("new"), deploy.device.destination, "--json")
    assert "connection was lost while sending files" in error_of(ended, 7, "remote")["message"]
    assert set(deploy.still()["names"]) - set(before["names"]) == {"incoming"}
    assert deploy.still()["files"] == before["files"] and deploy.still()["links"] == before["links"]
    (deploy.device.fakes / "head").unlink()
    assert deploy(renamed("next"), deploy.device.destination).code == 0
    assert _current(deploy) == "next" and not (deploy.device.folder / "incoming").exists()


# a full disk


@pytest.fixture
def small(
    deployed: Deployer, wheelhouse: Path, tmp_path: Path
) -> Callable[[int], contextlib.AbstractContextManager[Deployer]]:
    """A device on which OLD serves, with so many MB of disk in all."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOT RUN: only root may give sshd a small disk of its own")

    @contextlib.contextmanager
    def make(megabytes: int) -> Iterator[Deployer]:
        home = tmp_path / f"small{megabytes}"
        disk = home / "disk"
        mount = f'mount -t tmpfs -o size={megabytes}m none "{disk}" && cp -a "{home}/old" "{disk}/athe" && exec "$@"'
        wrap = ("unshare", "-m", "sh", "-ec", mount, "sh")
        furnish(home / "old", deployed.device.folder)
        with device(home, index(wheelhouse), wrap) as made:
            yield Deployer(deployed.program, made)

    return make


def _there(made: Device, script: str) -> str:
    """What a shell on the device says."""
    line = ["ssh", "-F", str(made.config), made.login, script]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("megabytes", "doing"), [(4, "writing"), (40, "installing the runtime")])
def test_a_disk_that_fills_up_leaves_what_serves(
    small: Callable[[int], contextlib.AbstractContextManager[Deployer]],
    renamed: Make,
    tmp_path: Path,
    megabytes: int,
    doing: str,
) -> None:
    (tmp_path / "versions.txt").write_text("rich>=13\n")
    with small(megabytes) as deploy:
        folder = deploy.device.folder
        everything = f"cd {folder} && find . | sort && find . -type f -exec sha256sum {{}} + && readlink current"
        before = _there(deploy.device, everything)
        arguments = (renamed("new"), deploy.device.destination, "--constraint", tmp_path / "versions.txt", "--json")
        refusal = error_of(deploy(*arguments), 7, "remote")
        assert "disk: " in refusal["message"] and "free space" in refusal["remedy"]
        deploy.device.fake("df", "echo x x x 99000000 x x")  # as where a quota ends what df calls free
        ended = deploy(*arguments)
        require_one_message(ended, 7)
        error = error_of(ended, 7, "remote")
        assert "is full" in error["message"] and doing in error["message"]
        assert _there(deploy.device, everything) == before
        said = _there(deploy.device, f"{folder}/athe-export verify {folder}/current")
        assert "verdict: pass" in said
