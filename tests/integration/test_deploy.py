"""Deploying to a real sshd on the loopback: what it brings there, going back, and devices that cannot take a bundle."""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import importlib.metadata
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from athe_export.bundle.reader import open_bundle
from athe_export.data.shapes import Shapes
from athe_export.deploy.own_wheel import repacked
from tests.conftest import ROOT
from tests.integration.conftest import OLD, PYTHON, Deployer, furnish, index
from tests.sshd import Device, device, key
from tests.tools import Outcome, cli, edit_arrays, environment, error_of, listing, refused, require_one_message

Make = Callable[[str], Path]
pytestmark = pytest.mark.device


def _failed(deploy: Deployer, code: int, kind: str, *arguments: object, **variables: str) -> dict[str, Any]:
    """Deploys what must fail, and shows that nothing on the device is other than it was."""
    before = deploy.still()
    ended = deploy(*arguments, "--json", **variables)
    require_one_message(ended, code)
    assert deploy.still() == before
    return error_of(ended, code, kind)


# what a deployment brings


def test_a_deployed_bundle_is_whole_without_its_reference_and_runs_in_a_runtime_of_its_own(deployed: Deployer) -> None:
    folder = deployed.device.folder
    current = folder / "current"
    assert current.is_symlink() and current.resolve().parent == folder / "versions"
    here = listing(OLD)
    assert here.pop("reference.npz")
    assert listing(current) == here
    assert deployed.serving()["version"] == f"versions/{current.resolve().name}"
    runtime = folder / f"venv-{current.resolve().name.rpartition('-')[2]}"
    assert "onnxruntime==" in (runtime / "complete").read_text()
    assert {p.name for p in folder.iterdir()} == {".athe-export", "athe-export", "current", "versions", runtime.name}


def test_the_launcher_runs_the_current_bundle_from_any_folder(deployed: Deployer, photo: Path, tmp_path: Path) -> None:
    folder = deployed.device.folder
    (tmp_path / "link").symlink_to(folder / "athe-export")
    line = [tmp_path / "link", "run", folder / "current", photo, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["results"][0]["label"]


def test_a_bundle_that_is_there_is_verified_again_and_nothing_is_sent(deploy: Deployer) -> None:
    before = deploy.still()
    document = deploy(OLD, deploy.device.destination, "--json").document
    assert deploy.still() == before
    assert (document["sent"]["files"], document["switched"], document["verify"]["verdict"]) == (0, False, "pass")
    assert document["runtime"]["installed"] is False and document["runtime"]["packages"]["onnxruntime"]


def test_with_reference_it_travels_and_is_a_version_of_its_own(deploy: Deployer) -> None:
    document = deploy(OLD, deploy.device.destination, "--with-reference", "--json").document
    assert listing(deploy.device.folder / "current") == listing(OLD)
    assert document["switched"] and "reference.npz" in document["files"]


def test_rollback_goes_to_the_version_before_and_back_again_and_older_ones_are_removed(
    deploy: Deployer, renamed: Make
) -> None:
    to, folder = deploy.device.destination, deploy.device.folder
    first = (folder / "current").readlink().as_posix()
    for name in ("second", "third"):
        assert deploy(renamed(name), to).code == 0
    assert len(list((folder / "versions").iterdir())) == 2 and not (folder / first).exists()

    def current() -> str:
        return open_bundle(folder / "current").manifest.name

    assert current() == "third"
    shown = deploy(to, "--rollback", "--dry-run", "--json").document
    assert current() == "third" and not shown["switched"]
    back = deploy(to, "--rollback", "--json").document
    assert (current(), back["switched"], back["current"]) == ("second", True, shown["version"])
    assert deploy(OLD, to, "--rollback").code == 0  # a bundle may be named, and is of no use
    assert current() == "third"


def test_a_rollback_without_a_version_before_says_so(deploy: Deployer) -> None:
    error = _failed(deploy, 7, "remote", deploy.device.destination, "--rollback")
    assert "no version to go back to" in error["message"]


def test_a_rollback_to_a_version_that_was_damaged_leaves_the_current_one(deploy: Deployer, renamed: Make) -> None:
    assert deploy(renamed("second"), deploy.device.destination).code == 0
    (deploy.device.folder / "previous" / "labels.txt").write_text("other\n")
    error = _failed(deploy, 5, "bundle_integrity", deploy.device.destination, "--rollback")
    assert error["files"] == [{"path": "labels.txt", "problem": "changed"}]


def test_a_dry_run_names_the_plan_and_writes_nothing(deploy: Deployer, renamed: Make) -> None:
    device, before = deploy.device, listing(deploy.device.folder.parent)
    fresh = f"{device.login}:{device.folder.parent / 'fresh'}"
    document = deploy(renamed("new"), fresh, "--dry-run", "--json").document
    assert (document["dry_run"], document["switched"], document["current"]) == (True, False, "")
    assert document["version"] and document["runtime"]["installed"] and document["disk_bytes"] > 10**6
    assert {c["check"] for c in document["preflight"]} == {
        *("architecture", "libc", "python", "folder", "governor", "throttling", "clock", "time"),
        *("runtime", "disk", "memory"),
    }
    assert "nothing was written there" in deploy(renamed("other"), fresh, "--dry-run").out
    assert listing(device.folder.parent) == before and not (device.folder.parent / "fresh").exists()


def test_offline_all_wheels_travel_to_a_device_whose_pip_has_no_index(
    deployed: Deployer, wheelhouse: Path, tmp_path: Path
) -> None:
    with device(tmp_path / "home", {"PIP_NO_INDEX": "1"}) as made:
        to = f"{made.login}:{made.folder.parent / 'a folder'}"
        ended = Deployer(deployed.program, made)(OLD, to, "--offline", "--json", **index(wheelhouse))
        assert ended.code == 0, ended.err
        document = ended.document
        wheels = {w.partition("-")[0] for w in document["runtime"]["wheels"]}
        assert wheels == {"athe_export", *(w.name.partition("-")[0] for w in wheelhouse.iterdir())}
        assert document["sent"]["files"] == len(document["files"]) + len(wheels)
        assert (made.folder.parent / "a folder" / "current" / "manifest.json").is_file()


def test_with_the_camera_s_extra_the_service_of_the_docs_classifies_frames_with_what_was_deployed(
    deployed: Deployer, wheelhouse: Path, tmp_path: Path
) -> None:
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((ROOT / "docs/live.md").read_text().partition("```ini\n")[2].partition("```")[0])
    service = unit["Service"]
    assert service["Restart"] == "on-failure" and service.get("KillSignal", "SIGTERM") == "SIGTERM"
    for number in range(3):
        image = Image.fromarray(Shapes().image("test", number)).resize((64, 64))
        image.save(tmp_path / f"frame{number}.png")
    (tmp_path / "wheels").mkdir()
    repacked(importlib.metadata.distribution("opencv-python-headless"), tmp_path / "wheels")
    with device(tmp_path / "home", index(wheelhouse, tmp_path / "wheels")) as made:
        document = Deployer(deployed.program, made)(OLD, made.destination, "--camera", "--json").document
        assert document["runtime"]["extras"] == ["onnx", "camera"]
        home = made.folder.parent  # of whom the docs call pi, and who deployed to pi@raspberrypi:athe
        assert made.folder.name == "athe" and service["User"] == "pi"
        line = [word.replace("/home/pi/", f"{home}/") for word in shlex.split(service["ExecStart"])]
        place = line.index("--camera") + 1
        assert line[place] == "0"  # there is no camera here
        line[place] = str(tmp_path / "frame%d.png")
        done = subprocess.run(line, capture_output=True, text=True, cwd="/", env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(text).get("frame") for text in done.stdout.splitlines()] == [None, 0, 1, 2, None]


def test_a_version_that_was_damaged_on_the_device_is_replaced(deploy: Deployer) -> None:
    current = deploy.device.folder / "current"
    (current / "labels.txt").write_text("other\n")
    # a sync may take seconds, and a program may start meanwhile
    deploy.device.fake("sync", f'[ -e "{current}/manifest.json" ] || touch "{deploy.device.home}/dangled"; command -p sync')
    document = deploy(OLD, deploy.device.destination, "--json").document
    assert document["sent"]["files"] == len(document["files"]) and not document["switched"]
    assert not (deploy.device.home / "dangled").exists()
    deploy.serving()


def test_a_runtime_that_was_damaged_is_installed_anew_unless_it_is_in_use_and_then_is_named(deploy: Deployer) -> None:
    folder, to = deploy.device.folder, deploy.device.destination
    (runtime,) = folder.glob("venv-*")
    whole = runtime.readlink()
    runtime.unlink()
    shutil.copytree(whole, runtime, symlinks=True)
    library = next(runtime.rglob("numpy/_core/_multiarray_umath*.so"))
    library.write_bytes(library.read_bytes()[:100_000])
    error = _failed(deploy, 7, "remote", OLD, to)
    assert "in use there is damaged" in error["message"] and library.name in error["message"]
    assert runtime.name in error["remedy"]
    shutil.rmtree(runtime)  # as it says
    assert deploy(OLD, to, "--json").document["runtime"]["installed"] is True
    deploy.serving()
    library.write_bytes(b"")
    (folder / "current").unlink()  # nothing is in use
    document = deploy(OLD, to, "--json").document
    assert document["runtime"]["installed"] is True and document["sent"]["files"] == 1
    deploy.serving()


# what ssh says


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A device on which nothing was deployed."""
    with device(tmp_path_factory.mktemp("plain") / "home") as made:
        yield made


@pytest.fixture
def bare(plain: Device) -> Any:
    """The same, as it was, before each test."""
    yield plain
    plain.configure()
    shutil.rmtree(plain.fakes)
    plain.fakes.mkdir()
    assert not plain.folder.exists(), "a deployment that failed has left a folder"


def _refused(made: Device, *options: object, code: int = 7, kind: str = "remote") -> dict[str, Any]:
    return refused(code, kind, "deploy", OLD, made.destination, "--ssh-config", made.config, "--python", PYTHON, *options)


def test_a_host_that_does_not_exist_is_said(bare: Device) -> None:
    bare.configure(HostName="no-such-host.invalid")
    assert "no host is called" in _refused(bare)["message"]


def test_a_host_where_no_ssh_server_listens_is_said(bare: Device) -> None:
    bare.configure(Port=1)
    error = _refused(bare)
    assert "not to ssh" in error["message"] and "raspi-config" in error["remedy"]


def test_a_host_that_cannot_be_reached_is_said(bare: Device) -> None:
    isolated = ["unshare", "-rn"]  # a namespace without a network
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not permitted here")
    line = [*isolated, sys.executable, "-m", "athe_export.cli", "deploy", OLD, bare.destination, "--ssh-config", bare.config]
    done = subprocess.run([*map(str, line), "--json"], capture_output=True, text=True, env=environment(), check=False)
    error = error_of(Outcome(done.returncode, done.stdout, done.stderr), 7, "remote")
    assert "cannot be reached" in error["message"] and "ping" in error["remedy"]


def test_a_key_that_is_refused_is_said(bare: Device, tmp_path: Path) -> None:
    bare.configure(IdentityFile=key(tmp_path / "other"))
    error = _refused(bare)
    assert "refused to let" in error["message"] and "ssh-copy-id" in error["remedy"]


def test_a_host_key_that_changed_is_said_and_nothing_is_sent(bare: Device, tmp_path: Path) -> None:
    other = key(tmp_path / "other").with_suffix(".pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{bare.port} {other}")
    bare.configure(UserKnownHostsFile=tmp_path / "known")
    error = _refused(bare)
    assert "is another than it was" in error["message"] and "ssh-keygen -R" in error["remedy"]


def test_a_host_key_that_is_not_known_is_never_taken_unseen(bare: Device, tmp_path: Path) -> None:
    bare.configure(UserKnownHostsFile=tmp_path / "known")
    error = _refused(bare)
    assert "is not known here" in error["message"] and "fingerprint" in error["remedy"]
    assert not (tmp_path / "known").exists()


def test_on_a_terminal_ssh_may_ask_and_its_question_stays_to_be_read(bare: Device, tmp_path: Path) -> None:
    bare.configure(UserKnownHostsFile=tmp_path / "known")
    line = [sys.executable, "-m", "athe_export.cli", "deploy", OLD, bare.destination, "--ssh-config", bare.config]
    line += ["--python", PYTHON, "--dry-run"]
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [str(a) for a in line], environment() | {"TERM": "xterm"})
    shown, answered = b"", False
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while chunk := os.read(terminal, 1 << 12):
            shown += chunk
            if b"(yes/no" in shown and not answered:
                answered = True
                assert b"\x1b[2K" not in shown, "a progress display wiped lines away"
                os.write(terminal, b"yes\n")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, shown.decode()
    assert b"nothing was written there" in shown and (tmp_path / "known").read_text()


def test_a_configuration_that_ssh_does_not_read_is_said(bare: Device, tmp_path: Path) -> None:
    bare.config.write_text("Host *\n  NoSuchOption yes\n")
    assert "configuration" in _refused(bare)["message"]
    bare.config.unlink()
    assert "no such configuration" in _refused(bare, code=2, kind="usage")["message"]


def test_without_ssh_the_command_that_installs_it_is_said(bare: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bare.fakes))
    assert "openssh-client" in _refused(bare, code=6, kind="missing_dependency")["remedy"]


def test_a_login_without_a_shell_is_said(bare: Device) -> None:
    keys = bare.home / "authorized_keys"
    before = keys.read_text()
    keys.write_text(f'command="echo This account is for files alone." {before}')
    error = _refused(bare)
    keys.write_text(before)
    assert "no POSIX shell" in error["message"] and "files alone" in error["message"]


# what a device is


@pytest.mark.parametrize(
    ("fakes", "said", "remedy"),
    [
        ({"uname": 'case $1 in -m) echo armv7l;; *) /usr/bin/uname "$@";; esac'}, "armv7l", "64-bit Raspberry Pi OS"),
        ({"getconf": 'case $1 in LONG_BIT) echo 32;; *) /usr/bin/getconf "$@";; esac'},
         "32-bit", "64-bit Raspberry Pi OS"),
        ({"uname": 'case $1 in -m) echo riscv64;; *) /usr/bin/uname "$@";; esac'}, "riscv64", "aarch64, x86_64"),
        ({"getconf": 'case $1 in GNU*) echo glibc 2.24;; *) /usr/bin/getconf "$@";; esac'}, "glibc 2.24", "bookworm"),
        ({"getconf": 'case $1 in GNU*) exit 1;; *) /usr/bin/getconf "$@";; esac'}, "no glibc", "Debian"),
        ({"python3": r"printf 'python\t3.9.2\npython_bits\t64\nimplementation\tCPython\nvenv\tyes\n'"}, "CPython 3.9.2", "bookworm"),
        ({"python3": r"printf 'python\t3.11.2\npython_bits\t64\nimplementation\tCPython\nvenv\tno\n'"}, "without venv", "python3-venv"),
        ({"python3": "exit 127"}, "no /", "apt install python3"),
        ({"df": "echo x x x 2000 x x"}, "free, ", "free space"),
    ],
    ids=["32-bit", "32-bit under a 64-bit kernel", "unknown processor", "old glibc", "no glibc", "old python", "no venv",
         "no python", "full disk"],
)  # fmt: skip
def test_a_device_that_cannot_take_a_bundle_is_refused_and_nothing_is_written(
    bare: Device, fakes: dict[str, str], said: str, remedy: str
) -> None:
    for name, script in fakes.items():
        bare.fake(name, script)
    options = ["--python", bare.fakes / "python3"] if "python3" in fakes else []
    error = _refused(bare, *options)
    assert "cannot take the bundle" in error["message"] and said in error["message"]
    assert remedy in error["remedy"]


def test_what_makes_a_device_slow_is_warned_of(bare: Device) -> None:
    bare.fake("vcgencmd", "echo throttled=0x50005")
    bare.fake("date", "echo 1000")
    ended = cli("deploy", OLD, bare.destination, "--ssh-config", bare.config, "--python", PYTHON, "--dry-run", "--json")
    checks = {c["check"]: c for c in ended.document["preflight"]}
    assert (checks["throttling"]["verdict"], checks["time"]["verdict"]) == ("warn", "warn")
    assert "under-voltage" in checks["throttling"]["found"] and "power supply" in checks["throttling"]["note"]
    assert "behind" in checks["time"]["found"]


def test_a_folder_of_something_else_is_left_alone(bare: Device) -> None:
    other = bare.folder.parent / "photos"
    other.mkdir()
    (other / "one.jpg").write_text("mine")
    to = f"{bare.login}:{other}"
    error = refused(7, "remote", "deploy", OLD, to, "--ssh-config", bare.config, "--python", PYTHON)
    assert "a folder of something else" in error["message"] and listing(other).keys() == {"one.jpg"}


# what fails later


def test_without_a_wheel_for_the_device_it_is_named(deploy: Deployer, wheelhouse: Path, tmp_path: Path) -> None:
    for wheel in wheelhouse.iterdir():
        if not wheel.name.startswith("onnxruntime-"):
            (tmp_path / wheel.name).symlink_to(wheel)
    error = _failed(deploy, 6, "missing_dependency", OLD, deploy.device.destination, "--offline", **index(tmp_path))
    assert "there is no wheel of onnxruntime" in error["message"] and "--target" in error["remedy"]


def test_without_a_wheel_in_the_device_s_own_index_it_is_named_and_its_runtime_removed(
    deployed: Deployer, tmp_path: Path
) -> None:
    (tmp_path / "versions.txt").write_text("rich>=13\n")  # a runtime that is not there yet
    with device(tmp_path / "home", index(tmp_path)) as made:  # which has no wheel at all
        furnish(made.folder, deployed.device.folder)
        deploy = Deployer(deployed.program, made)
        error = _failed(deploy, 6, "missing_dependency", OLD, made.destination, "--constraint", tmp_path / "versions.txt")
    assert "there is no wheel of numpy" in error["message"] and made.login in error["where"]


def test_a_device_that_does_not_reach_its_index_is_told_from_an_index_without_a_wheel(
    deployed: Deployer, tmp_path: Path
) -> None:
    (tmp_path / "versions.txt").write_text("rich>=13\n")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": "/dev/null"}
    with device(tmp_path / "home", nowhere) as made:
        furnish(made.folder, deployed.device.folder)
        deploy = Deployer(deployed.program, made)
        error = _failed(deploy, 7, "remote", OLD, made.destination, "--constraint", tmp_path / "versions.txt")
    assert "index cannot be reached from the device" in error["message"] and "--offline" in error["remedy"]


def test_a_bundle_that_answers_otherwise_there_is_not_made_current_and_its_runtime_is_removed(
    deploy: Deployer, renamed: Make, tmp_path: Path
) -> None:
    bundle = renamed("wrong")
    edit_arrays(bundle, "golden.npz", lambda a: a.update({n: x + 1 for n, x in a.items() if n.startswith("onnx/")}))
    (tmp_path / "versions.txt").write_text("rich>=13\n")  # a runtime that is not there yet
    options = ("--constraint", tmp_path / "versions.txt")
    error = _failed(deploy, 3, "gate_failed", bundle, deploy.device.destination, *options)
    assert "verify fails on the device" in error["message"] and "golden" in error["message"]


def test_a_file_that_changes_on_its_way_is_noticed(deploy: Deployer, renamed: Make) -> None:
    deploy.device.fake("head", '/usr/bin/head "$@" | tr a b')
    error = _failed(deploy, 7, "remote", renamed("new"), deploy.device.destination)
    assert "arrived changed" in error["message"]


def test_two_deployments_to_one_folder_do_not_meet(deploy: Deployer, renamed: Make) -> None:
    with (deploy.device.folder / ".athe-export").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = _failed(deploy, 7, "remote", renamed("new"), deploy.device.destination)
    assert "another deployment" in error["message"]
    assert deploy(renamed("newer"), deploy.device.destination).code == 0


def test_a_damaged_bundle_is_refused_before_there_is_a_connection(renamed: Make) -> None:
    bundle = renamed("damaged")
    (bundle / "labels.txt").write_text("other\n")
    refused(5, "bundle_integrity", "deploy", bundle, "no-such-host.invalid:athe")


def test_a_reference_that_is_not_there_cannot_be_sent(renamed: Make) -> None:
    bundle = renamed("without")
    (bundle / "reference.npz").unlink()
    error = refused(2, "usage", "deploy", bundle, "no-such-host.invalid:athe", "--with-reference")
    assert "no reference" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([OLD], "needs a bundle and a destination"),
        ([OLD, "raspberrypi"], "does not name a device"),
        ([OLD, "pi@raspberrypi:"], "not a folder"),
        ([OLD, "pi@raspberrypi:athe", "--target", "litert"], "no target 'litert'"),
        ([OLD, "pi@raspberrypi:athe", "--constraint", "/nope"], "no such file of constraints"),
        ([OLD, "pi@raspberrypi:athe", "--ssh-config", "/nope"], "no such configuration of ssh"),
    ],
    ids=["no destination", "no folder", "an empty folder", "another target", "no constraints", "no configuration"],
)
def test_what_is_asked_for_wrongly_is_a_usage_error(arguments: list[object], said: str) -> None:
    assert said in refused(2, "usage", "deploy", *arguments)["message"]
