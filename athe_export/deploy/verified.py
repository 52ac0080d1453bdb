"""What `verify` has found on a device, from its JSON document, and its failures as ours."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

from athe_export import errors
from athe_export.deploy.connection import Reply
from athe_export.deploy.destination import Destination
from athe_export.deploy.refusals import device_failure
from athe_export.errors import AtheExportError, FileProblem, RemoteFailure


def verified(reply: Reply, to: Destination) -> dict[str, Any]:
    """The document of a `verify` that passed there.

    Raises:
        AtheExportError: it did not, with the class, exit code and remedy that it gave itself; RemoteFailure where it gave no
            reason, being ended by a signal for one.
    """
    document = _document(reply.text)
    if reply.status == 0 and document.get("verdict") == "pass":
        return document
    error = document.pop("error", None)
    if isinstance(error, dict):
        kind = next((k for k in _kinds() if k.kind == error.get("kind")), RemoteFailure)
        raise kind(
            f"verify fails on the device: {error.get('message')}",
            where=f"{to}: {error.get('where')}",
            remedy=error.get("remedy"),
            files=tuple(FileProblem(f["path"], f["problem"]) for f in error.get("files", ())),
            report={"verify": document} if document else None,
        )
    if reply.status > 128:
        name = signal.Signals(reply.status - 128).name if reply.status - 128 in set(signal.Signals) else "a signal"
        raise RemoteFailure(
            f"verify was ended there by {name}: {_REASONS.get(name, 'see the log of its kernel, dmesg')}",
            where=str(to),
            remedy="deploy with another engine (--target) or another version of it (--constraint)",
        )
    raise device_failure(reply.text, "verify", to)


_REASONS = {
    "SIGILL": "the engine has instructions that this processor lacks",
    "SIGKILL": "there was too little memory, most likely",
    "SIGSEGV": "the engine crashed",
}


def _kinds() -> Iterator[type[AtheExportError]]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, AtheExportError):
            yield kind


def _document(text: str) -> dict[str, Any]:
    """The JSON object at the head of the text; empty where there is none."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
