"""What is known of the machine, and when a run on it was a noisy one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from athe_export.bench import machine
from athe_export.bench.machine import Moment, best_cpus, disturbances, pinned, processor, throttling, throttling_words

QUIET = Moment(1800.0, 0.1, 50.0, ())


def test_the_processor_has_a_name_and_a_key_that_names_its_features() -> None:
    here = processor()
    assert here.name and here.cpus == len(machine.allowed_cpus()) >= 1
    assert here.name in here.key and all(f in here.key for f in here.features)


def test_inside_the_process_is_on_as_many_cpus_as_threads_and_afterwards_where_it_was() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cpus:
        assert os.sched_getaffinity(0) == set(cpus) and len(cpus) == 1
    assert os.sched_getaffinity(0) == before


def test_the_fastest_cores_come_first_and_one_thread_of_each_before_its_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cpu(number: int, siblings: str, khz: int) -> None:
        for name, text in (("topology/thread_siblings_list", siblings), ("cpufreq/cpuinfo_max_freq", str(khz))):
            path = tmp_path / f"cpu{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    for number, siblings, khz in ((0, "0-1", 2000), (1, "0-1", 2000), (2, "2", 3000), (3, "3", 1000)):
        cpu(number, siblings, khz)
    monkeypatch.setattr(machine, "_CPU", tmp_path)
    monkeypatch.setattr(machine, "allowed_cpus", lambda: (0, 1, 2, 3))
    assert best_cpus(1) == (2,)
    assert best_cpus(4) == (2, 0, 3, 1)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x0, ()),
        (0x1, ("under-voltage",)),
        (0x50005, ("under-voltage", "throttled")),
        (0x20000, ("clock capped since boot",)),
        (0x80008, ("soft temperature limit",)),
    ],
)
def test_throttling_bits_are_read_as_the_pis_documentation_has_them(bits: int, words: tuple[str, ...]) -> None:
    assert throttling_words(bits) == words


def test_throttling_is_what_vcgencmd_says_and_unknown_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert throttling() is None
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x20002\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert throttling() == ("clock capped",)
    program.write_text("#!/bin/sh\nexit 255\n")
    assert throttling() is None


def test_a_quiet_run_has_no_disturbance() -> None:
    assert disturbances(1, 0.99, 1.05, 0.01, QUIET, QUIET) == ()


@pytest.mark.parametrize(
    ("threads", "busy", "spread", "drift", "after", "said"),
    [
        (1, 0.6, 1.0, 0.0, QUIET, "had the CPU for 40%"),
        (1, 1.0, 1.5, 0.0, QUIET, "1.5 times its median"),
        (1, 1.0, 1.0, 0.2, QUIET, "20% longer at the end"),
        (1, 1.0, 1.0, -0.2, QUIET, "20% less at the end"),
        (1, 1.0, 1.0, 0.0, Moment(600.0, 0.1, 85.0, ("throttled",)), "held back: throttled"),
        (1, 1.0, 1.0, 0.0, Moment(600.0, 0.1, 85.0, ("throttled since boot",)), "throttled since boot"),
    ],
)
def test_each_disturbance_is_named(threads: int, busy: float, spread: float, drift: float, after: Moment, said: str) -> None:
    found = disturbances(threads, busy, spread, drift, QUIET, after)
    assert len(found) == 1 and said in found[0]


def test_cpu_time_of_several_threads_says_nothing_of_others() -> None:
    assert disturbances(4, 0.6, 1.0, 0.0, QUIET, QUIET) == ()


def test_throttling_of_before_the_run_is_no_disturbance_of_it() -> None:
    past = Moment(1800.0, 0.1, 50.0, ("throttled since boot",))
    assert disturbances(1, 1.0, 1.0, 0.0, past, past) == ()
