"""Which columns of a power meter's log hold time and power: of known programs by their header, else as the user names them.

A preset stands for the file of one program, whose source or documentation says what the columns are; docs/energy.md names
it. Makers' own programs are not among them, since none of them documents its export.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from athe_export.errors import PowerLogError

AUTO = "auto"
HOW = "name them: --power-columns 'time=COLUMN:ms,power=COLUMN:mW', or voltage= and current= in place of power="
_UNITS = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "power": {"W": 1.0, "mW": 1e-3, "uW": 1e-6},
    "voltage": {"V": 1.0, "mV": 1e-3, "uV": 1e-6},
    "current": {"A": 1.0, "mA": 1e-3, "uA": 1e-6},
}
_ROLE = re.compile(rf"(?:^|,)\s*({'|'.join(_UNITS)})=")


@dataclass(frozen=True)
class Column:
    """A column by its header, and what one of its units is in s, W, V or A."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class Columns:
    """Where time and power stand: power itself, or voltage and current. `name` is the preset's, or `columns`."""

    name: str
    time: Column
    power: Column | None = None
    voltage: Column | None = None
    current: Column | None = None

    @property
    def watts(self) -> tuple[Column, ...]:
        """The columns whose product is the power."""
        return tuple(c for c in (self.power, self.voltage, self.current) if c is not None)

    @property
    def needed(self) -> tuple[Column, ...]:
        return (self.time, *self.watts)


PRESETS = (
    Columns("fnirsi-logger", Column("timestamp"), voltage=Column("voltage_V"), current=Column("current_A")),
    Columns("pyummeter", Column("Date"), voltage=Column("Voltage (V)"), current=Column("Intensity (A)")),
    Columns("rd-usb", Column("Unix time"), voltage=Column("Voltage (V)"), current=Column("Current (A)")),
    Columns("tc66c", Column("Time[S]"), voltage=Column("Volt[V]"), current=Column("Current[A]")),
    Columns("km003c-cli", Column("Timestamp(us)", 1e-6), voltage=Column("Vbus(V)"), current=Column("Ibus(A)")),
    Columns("km003c-logger", Column("timestamp_ms", 1e-3), voltage=Column("vbus_µV", 1e-6), current=Column("ibus_µA", 1e-6)),
)


def asked_columns(text: str) -> Columns | None:
    """What --power-columns says: a preset's name or a mapping; None of `auto`, which is told by the log's header.

    Raises:
        PowerLogError: it is neither.
    """
    if text == AUTO:
        return None
    for preset in PRESETS:
        if preset.name == text:
            return preset
    parts = _ROLE.split(text)
    if parts[0].strip() or len(parts) < 3:
        known = ", ".join(p.name for p in PRESETS)
        raise _unusable(f"{text!r} is neither a format ({known}) nor a mapping")
    roles = list(parts[1::2])
    found = {role: _column(role, value) for role, value in zip(roles, parts[2::2], strict=True)}
    if len(found) < len(roles):
        raise _unusable("a column is named twice")
    if "time" not in found:
        raise _unusable("no column is named for the time")
    if set(found) - {"time"} not in ({"power"}, {"voltage", "current"}):
        raise _unusable("power takes one column, or one for the voltage and one for the current")
    return Columns("columns", **found)


def recognised(header: Sequence[str]) -> Columns | None:
    """The preset that all needed columns of a header belong to."""
    return next((p for p in PRESETS if {c.name for c in p.needed} <= set(header)), None)


def _column(role: str, text: str) -> Column:
    """`NAME` or `NAME:UNIT`; what stands after a colon and is no unit belongs to the name."""
    name, colon, unit = text.strip().rpartition(":")
    if not colon or unit not in _UNITS[role]:
        name, unit = text.strip(), next(iter(_UNITS[role]))
    if not name:
        raise _unusable(f"no column is named after {role}=")
    return Column(name, _UNITS[role][unit])


def _unusable(what: str) -> PowerLogError:
    return PowerLogError(what, where="--power-columns", remedy=HOW)
