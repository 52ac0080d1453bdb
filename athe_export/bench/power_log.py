"""Reading what a USB power meter has written: times and watts from delimited text, whoever wrote it.

Times are of the meter's or its host's clock, from wherever that counts; `alignment` finds out what they are in the run's.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from athe_export.bench.meters import HOW, Columns, recognised
from athe_export.errors import PowerLogError

Values = npt.NDArray[np.float64]
_NAME_IT = "name the file that the meter's program writes"
_HEADER_LINES = 50  # programs that write a preamble do so in fewer
_JITTER_S = 1.0  # samples of one packet may stand out of order by less; a step back of more begins another recording
_UNREADABLE = 0.01  # share of lines
_DAY_S = 86_400.0


@dataclass(frozen=True)
class PowerLog:
    """A meter's log in order of time.

    Attributes:
        path: the file.
        format: the preset's name, or `columns`.
        times: float64 [n], seconds.
        watts: float64 [n].
        resolution_w: the smallest step of power that the log can show.
        skipped_lines: lines that could not be read, by number; the last one may be half written.
        notes: what was made up for.
    """

    path: Path
    format: str
    times: Values
    watts: Values
    resolution_w: float
    skipped_lines: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def interval_s(self) -> float:
        """Typical seconds from one time that the log tells to the next."""
        return float(np.median(np.diff(np.unique(self.times))))


def check_format(path: Path, columns: Columns | None) -> None:
    """Looks at a log before a run that is to be joined with it: the folder must be there, and the header of a file that has
    one already must be understood.

    Raises:
        PowerLogError: there is no such folder, or the format is not known.
    """
    if not path.parent.is_dir():
        raise PowerLogError("there is no such folder", where=str(path.parent), remedy="name a file in a folder that exists")
    if path.is_dir():
        raise PowerLogError("is a folder, not a log", where=str(path), remedy=_NAME_IT)
    if path.exists() and (lines := _lines(path)):
        _layout(path, lines, columns)


def read_power_log(path: Path, columns: Columns | None = None) -> PowerLog:
    """Reads a log.

    Args:
        columns: where time and power stand; by the header where None.

    Raises:
        PowerLogError: missing, not text, in an unknown format, empty, or of several recordings.
    """
    lines = _lines(path)
    header, delimiter, columns = _layout(path, lines, columns)
    names = _cells(lines[header], delimiter)
    wanted = [names.index(c.name) for c in columns.needed]
    rows, numbers, skipped = [], [], []
    for number, line in enumerate(lines[header + 1 :], header + 2):
        if not line.strip() or line == lines[header]:  # programs that append to a file write both again
            continue
        values = _values(_cells(line, delimiter), wanted)
        if values is None:
            skipped.append(number)
        else:
            rows.append(values)
            numbers.append(number)
    if len(skipped) > 1 + _UNREADABLE * len(rows):
        raise PowerLogError(
            f"{len(skipped)} of {len(rows) + len(skipped)} lines have no number where time or power should stand, the first "
            f"of them line {skipped[0]}",
            where=str(path),
            remedy=f"record it again, or {HOW}",
        )
    if len(rows) < 2:
        raise PowerLogError("holds no samples yet", where=str(path), remedy="start the meter's log before bench")
    return _log(path, columns, np.array(rows), numbers, tuple(skipped))


def _log(path: Path, columns: Columns, table: Values, numbers: Sequence[int], skipped: tuple[int, ...]) -> PowerLog:
    times = table[:, 0] * columns.time.scale
    backwards = np.flatnonzero(np.diff(times) < -_JITTER_S)
    if len(backwards):
        at = int(backwards[0])
        raise PowerLogError(
            f"the time goes back by {times[at] - times[at + 1]:.1f} s in line {numbers[at + 1]}: the file holds several "
            "recordings",
            where=str(path),
            remedy="keep the one of this run",
        )
    if times.max() - times.min() > _DAY_S:
        raise PowerLogError("the log is longer than a day", where=str(path), remedy="keep the part around the run")
    parts = [table[:, i] * c.scale for i, c in enumerate(columns.watts, 1)]
    watts, notes = np.prod(parts, axis=0), []
    if np.median(watts) < 0:
        watts, notes = -watts, ["power was logged as negative, and is taken the other way round"]
    resolution = float(np.hypot.reduce([_step(p) * np.median(np.abs(watts / _nonzero(p))) for p in parts]))
    order = np.argsort(times, kind="stable")
    return PowerLog(path, columns.name, times[order], watts[order], resolution, skipped, tuple(notes))


def _step(values: Values) -> float:
    """The smallest difference between values of a column."""
    steps = np.diff(np.unique(np.round(values, 9)))
    return float(steps.min()) if len(steps) else 0.0


def _nonzero(values: Values) -> Values:
    return np.where(values == 0, np.inf, values)


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PowerLogError("there is no such log", where=str(path), remedy=_NAME_IT) from None
    except OSError as err:
        raise PowerLogError(
            f"cannot be read: {err.strerror}", where=str(path), remedy="name a file that may be read"
        ) from None
    if b"\0" in content:
        raise PowerLogError("is not text", where=str(path), remedy="let the meter's program export CSV in UTF-8")
    return content.decode("utf-8-sig", errors="replace").splitlines()


def _layout(path: Path, lines: Sequence[str], columns: Columns | None) -> tuple[int, str, Columns]:
    """(index of the header, delimiter, columns): the first line in which all columns stand."""
    for index, line in enumerate(lines[:_HEADER_LINES]):
        for delimiter in ",;\t ":
            names = _cells(line, delimiter)
            found = recognised(names) if columns is None else columns
            if found is not None and {c.name for c in found.needed} <= set(names):
                return index, delimiter, found
    head = next((line.strip() for line in lines[:_HEADER_LINES] if line.strip()), "")
    if not head:
        raise PowerLogError("holds no samples yet", where=str(path), remedy="start the meter's log before bench")
    what = "the log's format is not known" if columns is None else "the log has no line with " + _quoted(columns)
    raise PowerLogError(f"{what}; it begins: {head[:120]}", where=str(path), remedy=HOW)


def _quoted(columns: Columns) -> str:
    return ", ".join(repr(c.name) for c in columns.needed)


def _cells(line: str, delimiter: str) -> list[str]:
    """Cells of a line, none of one that is no CSV; blanks in a row count as one."""
    if delimiter == " ":
        return line.split()
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # a cell of more than 128 KiB
        return []


def _values(cells: Sequence[str], wanted: Sequence[int]) -> tuple[float, ...] | None:
    if len(cells) <= max(wanted):
        return None
    try:
        found = (_time(cells[wanted[0]]), *(_number(cells[i]) for i in wanted[1:]))
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def _number(text: str) -> float:
    """A number, with a point or, as some countries write it, a comma."""
    return float(text.replace(",", ".") if re.fullmatch(r"[+-]?\d+,\d+", text) else text)


def _time(text: str) -> float:
    """Seconds, as a number or as a date and time in ISO 8601, which is taken as UTC where no zone stands there."""
    try:
        return _number(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=None) - datetime(1970, 1, 1) - (moment.utcoffset() or moment - moment)).total_seconds()
