"""Where a folder holds CIFAR-100: names of files alone, nothing is read. Needs no numpy, for `doctor`."""

from __future__ import annotations

import re
from pathlib import Path

from athe_export.errors import DatasetError

PACKED = "cifar100.packed"
_PART = re.compile(r"(?P<name>.+)\.(?P<number>\d+)of(?P<count>\d+)")


def holds_cifar100(root: Path) -> bool:
    """Whether all official files are there."""
    return all((root / "cifar-100-python" / name).is_file() for name in ("train", "test", "meta"))


def packed_files(root: Path) -> tuple[Path, ...]:
    """The packed file that `root` is or holds, or its parts in order; nothing if it is the root of unpacked data.

    Raises:
        DatasetError: parts are missing.
    """
    folder, name = (root, PACKED) if root.is_dir() else (root.parent, root.name)
    if match := _PART.fullmatch(name):
        name = match["name"]
    if (folder / name).is_file():
        return (folder / name,)
    found = {p: m for p in folder.glob(f"{name}.*of*") if (m := _PART.fullmatch(p.name))} if folder.is_dir() else {}
    if not found:
        return ()
    count = max(int(m["count"]) for m in found.values())
    parts = tuple(folder / f"{name}.{number}of{count}" for number in range(1, count + 1))
    if missing := [p.name for p in parts if p not in found]:
        raise DatasetError(
            f"parts of the packed dataset are missing: {', '.join(missing)}",
            where=str(folder),
            remedy="copy them beside the others",
        )
    return parts
