"""A deployment as a person sees it, from the document that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Grid = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, columns, rows


def deploy_text(document: Mapping[str, Any]) -> tuple[list[Grid], list[str]]:
    """Tables, and lines below them."""
    rows: list[tuple[str, ...]] = [(c["check"], c["found"], c["verdict"]) for c in document.get("preflight", ())]
    grids: list[Grid] = [(f"preflight of {document['destination']}", ("check", "found", "verdict"), rows)] if rows else []
    return grids, list(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    for check in document.get("preflight", ()):
        if check["note"]:
            yield f"note: {check['check']}: {check['note']}"
    gate = document.get("bundle", {}).get("gate_at_build", "pass")
    if gate != "pass":
        yield f"note: the gate's verdict when the bundle was built: {gate}"
    if document["dry_run"]:
        yield from _dry_lines(document)
        return
    for left in document["verify"]["not_run"]:
        yield f"not run there: {left['target']}: {left['why']}"
    if "sent" in document:
        yield f"sent {document['sent']['files']} files, {document['sent']['bytes'] / 1e6:.1f} MB"
    before = f"; before it was {document['was_current']}" if document["was_current"] else ""
    unchanged = "" if document["switched"] else " as before"
    yield f"verified there, current{unchanged}: {document['current']}" + (before if document["switched"] else "")
    yield from (f"note: {note}" for note in document["notes"])
    folder = document["folder"]
    yield f"\nthere:\n  {folder}/athe-export run {folder}/current YOUR_PHOTO.jpg"


def _dry_lines(document: Mapping[str, Any]) -> Iterator[str]:
    if "runtime" in document:
        runtime = document["runtime"]
        wheels = f", from {len(runtime['wheels'])} wheel(s) sent along" if runtime["installed"] else ""
        yield f"runtime {runtime['key']}: " + (f"would be installed{wheels}" if runtime["installed"] else "is there")
        yield f"{len(document['files'])} files of the bundle would be sent, where they are not there"
    yield f"would become current: {document['version']}; is current: {document['current'] or 'nothing'}"
    yield "nothing was written there"
