"""A real sshd on the loopback that stands for a device, and a line to it that can be cut."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PROGRAMS = ("ssh", "ssh-keygen", "flock", "sha256sum")
NOT_RUN = "NOT RUN, nothing was deployed: this needs sshd and ssh (apt-get install openssh-server openssh-client)"


def require_sshd() -> None:
    """Skips where there is no sshd, and says so in words that are hard to miss."""
    if SSHD is None or any(shutil.which(program) is None for program in PROGRAMS):
        pytest.skip(NOT_RUN)


def key(path: Path) -> Path:
    """A new key pair, without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@dataclass
class Device:
    """A user behind sshd. `config` is what ssh needs to log in, `folder` a place there, `fakes` a folder early in its PATH.

    `login` is an alias of that configuration.
    """

    home: Path
    port: int
    config: Path
    folder: Path
    fakes: Path
    log: Path
    login: str = "device"

    @property
    def destination(self) -> str:
        return f"{self.login}:{self.folder}"

    def fake(self, name: str, script: str) -> None:
        """A program of the device that tells something else."""
        path = self.fakes / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def configure(self, **changes: object) -> None:
        """Writes ssh's configuration anew, with other values for some of its keys."""
        values: dict[str, object] = {
            "HostName": "127.0.0.1", "Port": self.port, "User": getpass.getuser(), "IdentityFile": self.home / "key",
            "IdentitiesOnly": "yes", "UserKnownHostsFile": self.home / "known_hosts", "GlobalKnownHostsFile": "/dev/null",
        }  # fmt: skip
        lines = [f"  {name} {value}" for name, value in (values | changes).items()]
        self.config.write_text("\n".join([f"Host {self.login}", *lines, ""]))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def device(home: Path, variables: Mapping[str, str] | None = None, wrap: tuple[str, ...] = ()) -> Iterator[Device]:
    """Starts sshd for this user, with variables of its own in each session.

    Args:
        wrap: a command that sshd is started through, such as one that gives it a small disk.
    """
    require_sshd()
    home.mkdir(parents=True, exist_ok=True)
    made = Device(home, _free_port(), home / "config", home / "disk" / "athe", home / "fakes", home / "sshd.log")
    for folder in (made.fakes, made.folder.parent):
        folder.mkdir()
    host, user = key(home / "host"), key(home / "key")
    shutil.copy(user.with_suffix(".pub"), home / "authorized_keys")
    public = host.with_suffix(".pub").read_text()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{made.port} {public}")
    session = {"PATH": f"{made.fakes}:/usr/local/bin:/usr/bin:/bin"} | dict(variables or {})
    (home / "sshd_config").write_text(
        "\n".join(
            [
                *(f"Port {made.port}", "ListenAddress 127.0.0.1", f"HostKey {host}", "PidFile none", "UsePAM no"),
                *(f"AuthorizedKeysFile {home / 'authorized_keys'}", "StrictModes no", "PasswordAuthentication no"),
                *("KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "MaxStartups 100"),
                "SetEnv " + " ".join(f'"{name}={value}"' for name, value in session.items()),
                "",
            ]
        )
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which sshd asks for, and its service makes
    made.configure()
    with made.log.open("w") as log:
        sshd = subprocess.Popen([*wrap, str(SSHD), "-D", "-e", "-f", str(home / "sshd_config")], stderr=log)
        try:
            _wait_for(made, sshd)
            yield made
        finally:
            sshd.terminate()
            sshd.wait()


def _wait_for(made: Device, sshd: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", made.port), 1):
            return
        if sshd.poll() is not None:
            break
        time.sleep(0.02)
    pytest.fail(f"sshd did not start: {made.log.read_text()}")


class Line:
    """A TCP line to a port, which is cut as soon as so many bytes have gone towards it; `passed` counts them."""

    def __init__(self, port: int, cut_after: int | None = None) -> None:
        self._to, self._cut_after = port, cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.passed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for ends in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 14):
                sink.sendall(chunk)
                if counted:
                    self.passed += len(chunk)
                    if self._cut_after is not None and self.passed >= self._cut_after:
                        break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
