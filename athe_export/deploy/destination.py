"""Where a bundle goes: `user@host:dir`, written as scp takes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from athe_export.errors import UsageError

_FORM = re.compile(
    r"(?:(?P<user>[^@:/\s-][^@:/\s]*)@)?(?:\[(?P<literal>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[\w][\w.-]*)):(?P<dir>.*)", re.S
)


@dataclass(frozen=True)
class Destination:
    """What ssh is to connect to (`user@host`, or a host of its configuration), and a folder there; a relative one is below
    the home folder."""

    login: str
    folder: str

    def __str__(self) -> str:
        return f"{self.login}:{self.folder}"


def parse_destination(text: str) -> Destination:
    """Reads `[user@]host:dir`; an IPv6 address stands in brackets, and `~/` is the home folder.

    Raises:
        UsageError: it is not of this form, or names no folder that could be taken.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{text!r} does not name a device and a folder on it",
            where="DESTINATION",
            remedy="write user@host:dir, such as pi@raspberrypi:athe",
        )
    folder = found["dir"].removeprefix("~/").rstrip("/") if found["dir"] != "~" else ""
    unusual = folder.startswith(("~", "-")) or not folder.isprintable() or ".." in folder.split("/")
    if unusual or folder.strip("./") == "":
        raise UsageError(
            f"{found['dir']!r} is not a folder that a bundle can be deployed to",
            where="DESTINATION",
            remedy="name a folder of its own after the colon, such as athe, which lies in the home folder, or /srv/athe",
        )
    host = found["literal"] or found["host"]
    return Destination(f"{found['user']}@{host}" if found["user"] else host, folder)
