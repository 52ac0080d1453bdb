"""The images whose answer changed, as small pictures in the page: who answered what before and after, and why."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from athe_export.report.markup import class_name

SHOWN = 48  # a target; what is left out is counted
_SIDE = 64  # pixels; larger images are made smaller

_CAUSES = {"router_flip": "routed elsewhere", "token_choice": "other tokens kept", "quantization": "quantization"}


def shown_changes(parity: Mapping[str, Any] | None) -> dict[str, list[dict[str, Any]]]:
    """By system, the changed images that the gallery shows: lost ones first, then won, then the rest; by id within."""
    targets = (parity or {}).get("targets") or {}
    return {name: sorted(found, key=_rank)[:SHOWN] for name, t in targets.items() if (found := _changed(t))}


def shown_ids(parity: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Positions in the gate's split of all the images that the gallery shows, ascending."""
    return tuple(sorted({int(c["id"]) for changes in shown_changes(parity).values() for c in changes}))


def thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of RGB pixels uint8 [height, width, 3], made smaller where a side is longer than 64."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def gallery(parity: Mapping[str, Any] | None, labels: Sequence[str], thumbnails: Mapping[int, bytes]) -> str:
    """One group of pictures a system; an image without a thumbnail is described alone.

    Args:
        labels: class names, in the order of the logits.
        thumbnails: PNGs by image id.
    """
    parts = []
    for name, changes in shown_changes(parity).items():
        total = len(_changed((parity or {})["targets"][name]))
        left_out = f"; {total - len(changes)} are left out here and listed in the manifest" if total > len(changes) else ""
        cards = "".join(_card(change, labels, thumbnails.get(int(change["id"]))) for change in changes)
        many = "image whose answer" if total == 1 else "images whose answer"
        parts.append(f'<h3>{escape(name)}: {total} {many} changed{left_out}</h3><div class="gallery">{cards}</div>')
    return "".join(parts)


def _changed(target: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list((target.get("attribution") or {}).get("changed") or [])


def _outcome(change: Mapping[str, Any]) -> str:
    if change["before"]["answer"] == change["label"]:
        return "lost"
    return "won" if change["after"]["answer"] == change["label"] else "wrong before and after"


def _rank(change: Mapping[str, Any]) -> tuple[int, int]:
    return ("lost", "won", "wrong before and after").index(_outcome(change)), int(change["id"])


def _card(change: Mapping[str, Any], labels: Sequence[str], png: bytes | None) -> str:
    before, after, outcome = change["before"], change["after"], _outcome(change)
    truth = class_name(change["label"], labels)
    route = before["branch"] if before["branch"] == after["branch"] else f"{before['branch']} → {after['branch']}"
    answers = f"{class_name(before['answer'], labels)} → {class_name(after['answer'], labels)}"
    cause = str(change.get("cause") or "")
    picture = ""
    if png is not None:
        source = base64.b64encode(png).decode()
        picture = f'<img alt="{escape(truth)}" src="data:image/png;base64,{source}">'
    colour = {"lost": "fail", "won": "pass"}.get(outcome, "")
    return (
        f'<figure>{picture}<figcaption><b>{escape(truth)}</b><span class="{colour}">{outcome}</span>: {escape(answers)}<br>'
        f"branch: {escape(str(route))}<br>{escape(_CAUSES.get(cause, cause))} · #{change['id']}</figcaption></figure>"
    )
