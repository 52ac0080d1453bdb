"""One ssh connection for a whole deployment, and requests to the program that runs at its other end (`device.sh`).

A single process of the system's ssh: one login, the user's own configuration, keys and known hosts. If it ends, by a cut or
by a kill, the program at the other end meets the end of its input, removes what was half there, and gives up its lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO

from athe_export.deploy.destination import Destination
from athe_export.deploy.refusals import ssh_failure
from athe_export.errors import EnvironmentFailure, MissingDependency, RemoteFailure, UsageError

_CHUNK = 1 << 16
_CLOSING_S = 30  # a device may have much to remove
# A dead network is noticed after 30 seconds. Nothing is forwarded, whatever the user's configuration says for logins.
_OPTIONS = (
    *("ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3"),
    *("LogLevel=ERROR", "ClearAllForwardings=yes", "ControlMaster=no", "RequestTTY=no"),
)


@dataclass(frozen=True)
class Reply:
    """The status of a request, 0 where it was done, and what was written meanwhile."""

    status: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Connection:
    """Requests to a device, in order.

    Attributes:
        doing: what a message calls the step at work, if the connection ends in it.
        remedy: what is to be done then; None where nothing has changed there.
    """

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes], token: str, to: Destination) -> None:
        self._process, self._said, self._token, self._to = process, said, token, to
        self.doing = "connecting"
        self.remedy: str | None = None

    def ask(self, *fields: object, heard: Callable[[str], None] | None = None) -> Reply:
        """Sends a request and waits for its answer; `heard` is told every line as it comes.

        Raises:
            RemoteFailure: the connection ended first.
        """
        with contextlib.suppress(BrokenPipeError):  # what there is to say is read below
            self._send(("\t".join(map(str, fields)) + "\n").encode())
        return self._answer(heard)

    def put(self, name: str, source: Path, sent: Callable[[int], None]) -> Reply:
        """Sends a file to `name` among what arrives; `sent` is told of every chunk's bytes.

        Raises:
            RemoteFailure: the connection ended first.
            EnvironmentFailure: the file changes meanwhile.
        """
        digest, size = hashlib.sha256(), source.stat().st_size
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            file.seek(0)
            with contextlib.suppress(BrokenPipeError):  # the device has stopped reading, and says why
                self._send(f"put\t{name}\t{size}\t{digest.hexdigest()}\n".encode())
                left = size
                while left and (chunk := file.read(min(_CHUNK, left))):
                    self._send(chunk)
                    left -= len(chunk)
                    sent(len(chunk))
                if left:
                    raise EnvironmentFailure(
                        "a file became shorter while it was sent", where=str(source), remedy="run it again"
                    )
        return self._answer(None)

    def greet(self) -> None:
        """Waits for the other end; lines before its first answer are a login's greeting.

        Raises:
            RemoteFailure: there is no connection.
        """
        self._answer(None)
        self.doing = "a request"

    def close(self) -> None:
        """Ends the connection, once the other end has put itself in order."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSING_S)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _send(self, content: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(content)
        self._process.stdin.flush()

    def _answer(self, heard: Callable[[str], None] | None) -> Reply:
        assert self._process.stdout is not None
        lines: list[str] = []
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip("\r\n")
            if line.startswith(self._token + " "):
                return Reply(int(line.removeprefix(self._token)), tuple(x for x in lines if x))
            lines.append(line)
            if heard and line:
                heard(line)
        raise self._lost(lines)

    def _lost(self, lines: list[str]) -> RemoteFailure:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSING_S)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        if self.doing != "connecting":
            last = (said.strip().splitlines() or ["ssh ended"])[-1].strip()
            what = f"the connection was lost while {self.doing}: {last}"
            return RemoteFailure(what, where=str(self._to), remedy=self.remedy)
        if self._process.returncode in (255, None):
            return ssh_failure(said, self._to)
        heard = " ".join((said + "\n" + "\n".join(lines)).split())[-300:] or "nothing"
        return RemoteFailure(
            f"the login works, but no POSIX shell answers there; it said: {heard}",
            where=str(self._to),
            remedy="deploy to a user with an ordinary shell, whose key is not tied to one command",
        )


@contextlib.contextmanager
def connected(to: Destination, python: str, batch: bool, config: Path | None = None) -> Iterator[Connection]:
    """Connects; ssh may ask on the terminal, for a password or a new host's key, unless `batch`.

    Args:
        python: the interpreter there, by name or path.
        config: a configuration file for ssh in place of the user's.

    Raises:
        MissingDependency: ssh is not installed.
        UsageError: there is no such configuration file.
        RemoteFailure: there is no connection, or it ended early.
    """
    if shutil.which("ssh") is None:
        raise MissingDependency("ssh is not installed here", remedy="sudo apt install openssh-client")
    if config is not None and not config.is_file():
        raise UsageError("there is no such configuration of ssh", where=str(config), remedy="check --ssh-config")
    token = "athe-" + secrets.token_hex(8)
    program = files("athe_export.deploy").joinpath("device.sh").read_text(encoding="utf-8")
    remote = shlex.join(["sh", "-c", program, "sh", token, to.folder, python])
    options = [f"-o{option}" for option in (*_OPTIONS, *(["BatchMode=yes"] if batch else []))]
    line = ["ssh", *(["-F", str(config)] if config else []), *options, "--", to.login, remote]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env={**os.environ, "LC_ALL": "C"}
        )
        connection = Connection(process, said, token, to)
        try:
            connection.greet()
            yield connection
        finally:
            connection.close()
