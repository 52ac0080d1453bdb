"""Calibration sets: which training images int8 ranges are measured on, named by id and pinned by digest; no images.

A set is a YAML file (see docs/bundle-format.md for where its digests go). It is refused rather than used in part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from athe_export.data.source import Dataset, pixel_digest
from athe_export.errors import CalibrationError
from athe_export.preprocessing import Pixels
from athe_export.schema import DocumentReader, key

SHA256 = r"[0-9a-f]{64}"
LEAST_PER_BRANCH = 32
_DRAW_SEED = 1  # of further draws, which are the same every time
MAKE = "python -m athe_export.data.make_calibration --help"


@dataclass(frozen=True)
class CalibrationSet:
    """The content of a calibration file; `ids` are positions in `split`."""

    schema: Literal[1] = key("format version")
    dataset: str = key("dataset name")
    split: str = key("split the ids are positions in")
    ids: tuple[int, ...] = key("sample ids", min=0)
    ids_sha256: str = key("sha256 of the ids, decimal, joined by commas", pattern=SHA256)
    pixels_sha256: str = key("sha256 of the images' pixel digests, in order", pattern=SHA256)


@dataclass(frozen=True)
class BranchShare:
    """Calibration images of one branch: positions in the set, and ids that were added because it had too few."""

    positions: tuple[int, ...]
    topped_up: tuple[int, ...]


def ids_digest(ids: tuple[int, ...]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def make_calibration_set(dataset: Dataset, split: str, count: int, seed: int, avoid_split: str) -> CalibrationSet:
    """Draws `count` ids without replacement, passing over images whose pixels also stand in `avoid_split`.

    Raises:
        CalibrationError: the split has fewer such images.
    """
    avoid = set(_digests(dataset, avoid_split))
    chosen: list[int] = []
    seen: set[str] = set()
    for index in np.random.RandomState(seed).permutation(dataset.size(split)):
        digest = pixel_digest(dataset.image(split, int(index)))
        if len(chosen) == count:
            break
        if digest not in avoid and digest not in seen:
            chosen.append(int(index))
            seen.add(digest)
    if count < 1 or len(chosen) < count:
        raise CalibrationError(
            f"{dataset.name}/{split} has {len(chosen)} usable images, {count} were asked for",
            where=split,
            remedy="ask for fewer, and at least 1",
        )
    ids = tuple(sorted(chosen))
    return CalibrationSet(1, dataset.name, split, ids, ids_digest(ids), _pixels_digest(dataset, split, ids))


def disjoint_draws(
    found: CalibrationSet, dataset: Dataset, avoid: Iterable[Pixels], draws: int
) -> tuple[CalibrationSet, ...]:
    """Sets as large as `found`, from its split, that share no image with it, with one another, nor with those in `avoid`.

    Raises:
        CalibrationError: the split has too few images.
    """
    seen = {pixel_digest(pixels) for pixels in avoid} | {pixel_digest(dataset.image(found.split, i)) for i in found.ids}
    chosen: list[int] = []
    wanted = draws * len(found.ids)
    for index in np.random.RandomState(_DRAW_SEED).permutation(dataset.size(found.split)):
        if len(chosen) == wanted:
            break
        digest = pixel_digest(dataset.image(found.split, int(index)))
        if digest not in seen:
            chosen.append(int(index))
            seen.add(digest)
    if len(chosen) < wanted:
        raise CalibrationError(
            f"{dataset.name}/{found.split} has {len(chosen)} other images; {draws} draws of {len(found.ids)} need {wanted}",
            where="parity.stability_draws",
            remedy="ask for fewer draws, or make a smaller calibration set",
        )
    return tuple(
        CalibrationSet(1, dataset.name, found.split, ids, ids_digest(ids), _pixels_digest(dataset, found.split, ids))
        for ids in (tuple(sorted(chosen[i::draws])) for i in range(draws))
    )


def read_calibration_set(path: Path) -> CalibrationSet:
    """Reads the file alone; `check_calibration_set` holds it against the dataset.

    Raises:
        CalibrationError: missing, or every problem in it with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "not text"
        raise CalibrationError(
            f"the calibration set cannot be read: {reason}",
            where=str(path),
            remedy=f"correct data.calibration in the recipe, or make a set: {MAKE}",
        ) from None
    reader = DocumentReader()
    found = reader.read(CalibrationSet, text)
    if found is None or reader.problems:
        raise _refused(path, [str(p) for p in reader.problems])
    return found


def check_calibration_set(found: CalibrationSet, path: Path, dataset: Dataset, gate_split: str, gate_size: int) -> None:
    """Refuses a set that is not exactly what its digests say, or that shares images with the parity gate.

    Raises:
        CalibrationError: other dataset or split, duplicate ids, ids out of range, wrong digests, overlap by id or by
            pixels with the first `gate_size` images of `gate_split`.
    """
    problems = list(_static_problems(found, dataset))
    if not problems:
        problems = list(_content_problems(found, dataset, gate_split, gate_size))
    if problems:
        raise _refused(path, problems)


def _static_problems(found: CalibrationSet, dataset: Dataset) -> list[str]:
    problems = []
    if found.dataset != dataset.name:
        return [f"is for dataset {found.dataset!r}, the recipe uses {dataset.name!r}"]
    if found.split not in dataset.splits:
        return [f"{dataset.name} has no split {found.split!r}"]
    if not found.ids:
        problems.append("holds no ids")
    twice = sorted(i for i, count in Counter(found.ids).items() if count > 1)
    if twice:
        problems.append(f"ids stand twice: {_listed(twice)}")
    outside = [i for i in found.ids if i >= dataset.size(found.split)]
    if outside:
        problems.append(f"ids out of range, {found.split} has {dataset.size(found.split)} images: {_listed(outside)}")
    if ids_digest(found.ids) != found.ids_sha256:
        problems.append(f"ids_sha256 does not match the ids, which give {ids_digest(found.ids)}")
    return problems


def _content_problems(found: CalibrationSet, dataset: Dataset, gate_split: str, gate_size: int) -> list[str]:
    if found.split == gate_split:
        shared = [i for i in found.ids if i < gate_size]
        if shared:
            return [f"ids overlap the parity gate's split {gate_split!r}: {_listed(shared)}"]
    digests = [pixel_digest(dataset.image(found.split, i)) for i in found.ids]
    pixels = hashlib.sha256("".join(digests).encode()).hexdigest()
    if pixels != found.pixels_sha256:
        return [f"pixels_sha256 does not match the images, which give {pixels}"]
    gate = {d: i for i, d in enumerate(_digests(dataset, gate_split, gate_size))}
    same = [i for i, d in zip(found.ids, digests, strict=True) if d in gate]
    return [f"images of these ids also stand in the parity gate's split: {_listed(same)}"] if same else []


def split_by_branch(
    found: CalibrationSet,
    scores: npt.NDArray[np.float32],
    routed: npt.NDArray[np.int64],
    branches: tuple[str, ...],
    path: Path,
) -> tuple[BranchShare, ...]:
    """Which calibration images each branch is calibrated on: those the router sends to it.

    A branch with fewer than 32 is topped up with the images nearest to it by score; their ids are kept.

    Args:
        found: the set, n ids.
        scores: router scores, float32 [n].
        routed: branch position of each image, int64 [n].
        branches: names, easiest first.

    Raises:
        CalibrationError: a branch gets no image at all.
    """
    shares = []
    for branch, name in enumerate(branches):
        own = np.flatnonzero(routed == branch)
        if not len(own):
            raise CalibrationError(
                f"the router sends no calibration image to branch {name!r}",
                where=str(path),
                remedy="make a larger calibration set, or change router.threshold",
            )
        others = np.flatnonzero(routed != branch)
        distance = np.abs(scores[others] - np.median(scores[own]))
        lacking = max(0, LEAST_PER_BRANCH - len(own))
        extra = others[np.argsort(distance, kind="stable")[:lacking]]
        positions = tuple(int(p) for p in np.concatenate([own, extra]))
        shares.append(BranchShare(positions, tuple(found.ids[p] for p in extra)))
    return tuple(shares)


def _digests(dataset: Dataset, split: str, limit: int | None = None) -> list[str]:
    return [pixel_digest(dataset.image(split, i)) for i in range(min(limit or dataset.size(split), dataset.size(split)))]


def _pixels_digest(dataset: Dataset, split: str, ids: tuple[int, ...]) -> str:
    return hashlib.sha256("".join(pixel_digest(dataset.image(split, i)) for i in ids).encode()).hexdigest()


def _listed(ids: list[int]) -> str:
    values = [str(i) for i in ids]
    return ", ".join(values[:10]) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def _refused(path: Path, problems: list[str]) -> CalibrationError:
    return CalibrationError(
        "the calibration set is refused:\n" + "\n".join(f"  {p}" for p in problems),
        where=str(path),
        remedy=f"make a new one, since a part of a set is never used: {MAKE}",
    )
