"""The machine that is measured: processor, clock, governor, throttling, load, and whether a run on it was a quiet one.

Standard library alone: `doctor` reads it where nothing else is installed. What a system does not tell is None.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Features that decide which int8 and fp32 kernels run; x86 calls them flags, Arm Features.
_FEATURES = (
    *("sse4_1", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_CPU = Path("/sys/devices/system/cpu")
# `vcgencmd get_throttled`, documentation of Raspberry Pi OS: bit -> meaning; 16 bits higher: it has happened since boot
_THROTTLING = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
_BUSY = 0.95  # less CPU time than this of wall time, with one thread: something else had the CPU
_SPREAD = 1.2  # 90th percentile of fixed work over its median
_DRIFT = 0.05  # between the beginning and the end of a run


@dataclass(frozen=True)
class Processor:
    """Name, the features that matter to kernels, and how many CPUs this process may use."""

    name: str
    features: tuple[str, ...]
    cpus: int

    @property
    def key(self) -> str:
        """What tells this machine's processor from another: what was measured on one holds there alone."""
        return f"{self.name} | {' '.join(self.features)} | {self.cpus}"


@dataclass(frozen=True)
class Moment:
    """Clock of the CPUs in use in MHz, load average of a minute, temperature in °C, and throttling: bits and words."""

    mhz: float | None
    load: float | None
    celsius: float | None
    throttling: tuple[str, ...] | None

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"throttling": None if self.throttling is None else list(self.throttling)}


def processor() -> Processor:
    """As /proc/cpuinfo has it; an Arm board's own name stands beside that of its cores."""
    text = _read(Path("/proc/cpuinfo")) or ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    board = (_read(Path("/proc/device-tree/model")) or fields.get("Model", "")).strip("\0 \n")
    parts = [fields.get("model name") or _arm_core(fields) or platform.processor() or platform.machine(), board]
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = ", ".join(dict.fromkeys(part for part in parts if part))
    return Processor(name, tuple(f for f in _FEATURES if f in flags), len(allowed_cpus()))


def _arm_core(fields: dict[str, str]) -> str:
    """Arm's cpuinfo has numbers alone; the architecture names them where it is one of the Pi's."""
    cores = {"0xd03": "Cortex-A53", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76"}
    part = fields.get("CPU part")
    return cores.get(part, f"Arm part {part}") if part else ""


def allowed_cpus() -> tuple[int, ...]:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def best_cpus(threads: int) -> tuple[int, ...]:
    """The CPUs for so many threads: the fastest cores first, and one thread of each core before its second."""
    allowed = allowed_cpus()
    siblings = {cpu: _read(_CPU / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    seen: dict[str, int] = {}
    rank: dict[int, tuple[int, int]] = {}
    for cpu in allowed:
        place = seen[siblings[cpu]] = seen.get(siblings[cpu], -1) + 1
        rank[cpu] = (place, -(_number(_CPU / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") or 0))
    return tuple(sorted(allowed, key=lambda cpu: (*rank[cpu], cpu))[:threads])


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keeps this process on as many CPUs as it has threads; engines must be opened inside, or their threads roam.

    Gives the CPUs; empty where the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before, cpus = os.sched_getaffinity(0), best_cpus(threads)
    os.sched_setaffinity(0, cpus)
    try:
        yield cpus
    finally:
        os.sched_setaffinity(0, before)


def now(cpus: Sequence[int]) -> Moment:
    """Clock, load, temperature and throttling at this moment."""
    clocks = [f / 1000 for cpu in cpus if (f := _number(_CPU / f"cpu{cpu}/cpufreq/scaling_cur_freq"))]
    if not clocks:
        told = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read(Path("/proc/cpuinfo")) or "", re.M)
        clocks = [float(told[cpu]) for cpu in cpus if cpu < len(told)]
    load = None
    with contextlib.suppress(OSError):
        load = round(os.getloadavg()[0], 2)
    heat = _number(Path("/sys/class/thermal/thermal_zone0/temp"))
    mhz = round(sum(clocks) / len(clocks), 1) if clocks else None
    return Moment(mhz, load, None if heat is None else heat / 1000, throttling())


def governors(cpus: Sequence[int]) -> tuple[str, ...]:
    """What sets the clock of these CPUs, each once; empty where the system does not say."""
    found = (_read(_CPU / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus)
    return tuple(dict.fromkeys(g.strip() for g in found if g))


def throttling() -> tuple[str, ...] | None:
    """What holds a Raspberry Pi back now, or has since it started, in words; None where there is no vcgencmd."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=5, check=True)
        if found := re.search(r"0x([0-9a-fA-F]+)", done.stdout):
            return throttling_words(int(found[1], 16))
    return None


def throttling_words(bits: int) -> tuple[str, ...]:
    """The bits of `vcgencmd get_throttled` in words."""
    current = [word for bit, word in _THROTTLING.items() if bits >> bit & 1]
    past = [f"{word} since boot" for bit, word in _THROTTLING.items() if bits >> (16 + bit) & 1 and word not in current]
    return (*current, *past)


def disturbances(threads: int, busy: float, spread: float, drift: float, before: Moment, after: Moment) -> tuple[str, ...]:
    """Why a run was noisy, a line each; empty of a quiet one.

    Args:
        busy: CPU time of this process over wall time; only told of one thread, since several add up.
        spread: 90th percentile of fixed work, run beside the rows, over its median.
        drift: how much longer or shorter that work took at the end than at the beginning, as a share.
    """
    found = []
    if threads == 1 and busy < _BUSY:
        found.append(f"something else had the CPU for {100 * (1 - busy):.0f}% of the time")
    if spread > _SPREAD:
        found.append(f"one in ten runs of the same fixed work took {spread:.1f} times its median or more")
    if abs(drift) > _DRIFT:
        found.append(f"the same fixed work took {100 * abs(drift):.0f}% {'longer' if drift > 0 else 'less'} at the end")
    held = [word for moment in (before, after) for word in moment.throttling or () if not word.endswith("since boot")]
    grown = set(after.throttling or ()) - set(before.throttling or ())
    found += [f"the Pi was held back: {word}" for word in dict.fromkeys((*held, *sorted(grown)))]
    return tuple(found)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None
