"""What ssh and a device say when something does not work, as one message with what to do.

ssh tells failures of its own by exit status 255 and its words alone; those here are of OpenSSH 7.6 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from athe_export.deploy.destination import Destination
from athe_export.errors import RemoteFailure

# in order: an earlier one is the cause of a later one
_OF_SSH = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {host} is another than it was: this is another device or system, or someone in between",
        "if the device was set up anew, forget the old key with `ssh-keygen -R {host}`, and compare the new one as "
        "`ssh {login}` shows it",
    ),
    (
        r"Host key verification failed|authenticity of host .* can't be established|host key is known for",
        "the host key of {host} is not known here, and no one can be asked",
        "run `ssh {login}` once and compare the fingerprint that it shows",
    ),
    (
        r"UNPROTECTED PRIVATE KEY FILE",
        "the private key may be read by others, so ssh does not use it",
        "run `chmod 600` on the key",
    ),
    (
        r"Permission denied \(|Too many authentication failures|No supported authentication methods",
        "{host} refused to let {login} in",
        "put your key there with `ssh-copy-id {login}`, or check the user's name, until `ssh {login}` works",
    ),
    (
        r"Could not resolve hostname",
        "no host is called {host}",
        "check the spelling; on a home network {host}.local may work, or the device's address",
    ),
    (
        r"Connection refused",
        "{host} answers, but not to ssh",
        "turn its ssh server on (`sudo raspi-config`, Interface Options, SSH), or name its port in ~/.ssh/config",
    ),
    (
        r"timed out|No route to host|Network is (?:unreachable|down)|Host is down",
        "{host} cannot be reached",
        "check that the device is on and in the same network: `ping {host}`",
    ),
    (
        r"Bad owner or permissions|Bad configuration option|[Tt]erminating, \d+ bad configuration|Can't open user config",
        "ssh does not accept its configuration",
        "mend the file; `ssh -G {login}` shows what is read",
    ),
)
_OF_DEVICE = (
    (
        r"No space left on device|Errno 28|Disk quota exceeded",
        "the disk of {host} is full",
        "free space there, for one with `sudo apt clean`; what had arrived was removed",
    ),
    (
        r"Read-only file system",
        "the disk of {host} is read-only",
        "a worn or full card is one reason: look into `dmesg` there, and remount or replace it",
    ),
    (
        r"Permission denied|Operation not permitted",
        "{login} may not write there",
        "choose a folder of that user, such as {login}:athe, or change its owner with `sudo chown`",
    ),
    (r"File too large", "a file is larger than {host} allows", "raise the limit there (`ulimit -f`)"),
    (
        r"MemoryError|[Oo]ut of memory|Cannot allocate memory|^Killed",
        "{host} has too little memory for this",
        "end other programs there, or add swap",
    ),
)


def ssh_failure(said: str, to: Destination) -> RemoteFailure:
    """Why there is no connection, from what ssh wrote to stderr."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    what, remedy = _meaning(_OF_SSH, said, to) or (
        "ssh could not connect: " + (lines[-1] if lines else "it said nothing"),
        f"see whether `ssh -v {to.login}` works",
    )
    return RemoteFailure(what, where=str(to), remedy=remedy)


def device_failure(said: str, doing: str, to: Destination) -> RemoteFailure:
    """Why a step failed on the device, from what its programs wrote."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    known = _meaning(_OF_DEVICE, said, to)
    if known is None:
        return RemoteFailure(f"{doing} failed there: " + ("\n  ".join(lines[-4:]) or "it said nothing"), where=str(to))
    return RemoteFailure(f"{known[0]} ({doing})", where=str(to), remedy=known[1])


def pip_said(lines: Sequence[str]) -> str:
    """What of pip's output tells why it failed."""
    told = [line for line in lines if re.search("error|no space|conflict|depends on|requested", line, re.I)]
    return "\n".join(told or lines)


def _meaning(table: tuple[tuple[str, str, str], ...], said: str, to: Destination) -> tuple[str, str] | None:
    names = {"login": to.login, "host": to.login.rpartition("@")[2]}
    for pattern, what, remedy in table:
        if re.search(pattern, said, re.M):
            return what.format(**names), remedy.format(**names)
    return None
