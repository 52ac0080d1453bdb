"""`bench --power-log` as it is used: a real run of a real bundle, and a log that a simulated meter has made of its timeline."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from athe_export import bench_power
from athe_export.bench.join import patiently
from athe_export.bench.load_pattern import PowerPlan, timeline_from
from athe_export.bench.protocol import Plan
from athe_export.errors import PowerLogError
from tests.conftest import ROOT
from tests.power_example import Device, Meter, samples, write_log
from tests.tools import cli, edit_manifest, environment, error_of, refused

OLD = ROOT / "tests/bundles/v1/tiny"  # needs no build
SHORT = PowerPlan(chip_s=0.06, settle_s=0.04, load_s=0.12, idle_s=0.12, rounds=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans made shorter; the pattern is the same."""
    monkeypatch.setattr("athe_export.bench.run.QUICK", Plan(rounds=3, slice_s=0))
    monkeypatch.setattr("athe_export.bench.run.QUICK_POWER", SHORT)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose log was not there; what it printed is printed.json."""
    folder = tmp_path_factory.mktemp("power")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("athe_export.bench.run.QUICK", Plan(rounds=3, slice_s=0))
        patch.setattr("athe_export.bench.run.QUICK_POWER", SHORT)
        done = cli("bench", OLD, "--power-log", folder / "meter.csv", "--json")
    (folder / "printed.json").write_text(done.out)
    (folder / "code").write_text(str(done.code))
    return folder


def metered(folder: Path, name: str = "meter.csv") -> dict[tuple[str, ...], float]:
    """Writes the log that a meter would have made of the kept run; gives the joules that are true of it."""
    timeline = timeline_from(json.loads((folder / "meter.csv.bench.json").read_text())["energy"]["timeline"], "x")
    watts = {row: 0.8 + 0.1 * n for n, row in enumerate(timeline.rows)}
    device = Device(rows=tuple((row, 0.0, w) for row, w in watts.items()))
    write_log(folder / name, *samples(device, Meter(hertz=200, noise_w=0.01, offset_s=77.0, lead_s=1, tail_s=1), timeline))
    seconds: dict[tuple[str, ...], list[float]] = {}
    for block in timeline.blocks:
        each = (block.counted_to - block.counted_from) / block.images
        seconds.setdefault(timeline.rows[block.row], []).append(each)
    return {row: watts[row] * sum(s) / len(s) for row, s in seconds.items()}


def test_a_run_without_its_log_is_kept_with_every_figure_and_says_how_to_join_it(kept: Path) -> None:
    assert (kept / "code").read_text() == "2"
    printed: dict[str, Any] = json.loads((kept / "printed.json").read_text())
    error = printed["error"]
    assert (error["kind"], error["message"]) == ("power_log", "there is no such log")
    assert f"--join {kept}/meter.csv.bench.json" in error["remedy"]
    assert printed["energy"]["refused"] == "there is no such log" and printed["rows"] and printed["cold_start"]
    document = json.loads((kept / "meter.csv.bench.json").read_text())
    assert document["energy"]["timeline"] == printed["energy"]["timeline"]
    systems = [r["system"] for r in document["energy"]["timeline"]["rows"]]
    assert sorted(systems) == ["complex", "routed", "routed_simple", "simple"]  # no controls beside it, and no router alone


@pytest.mark.parametrize("run", ["meter.csv.bench.json", "printed.json"])
def test_a_kept_run_is_joined_later_and_gives_the_joules_that_are_true(kept: Path, run: str) -> None:
    truth = metered(kept)
    done = cli("bench", OLD, "--power-log", kept / "meter.csv", "--join", kept / run, "--json")
    assert done.code == 0, done.err
    assert "error" not in done.document and done.document["energy"]["refused"] is None
    found = {(r["system"], r["kind"], r["target"], r["precision"]): r["joules"] for r in done.document["energy"]["rows"]}
    assert set(found) == set(truth)
    for row, joules in found.items():
        room = 3 * (joules["upper"] - joules["value"]) + 0.02 * truth[row]
        assert joules["lower"] < joules["value"] < joules["upper"]
        assert joules["value"] == pytest.approx(truth[row], abs=room)
    assert done.document["energy"]["alignment"]["offset_s"] == pytest.approx(77.0, abs=0.02)


def test_a_person_sees_joules_with_their_interval_and_what_they_stand_on(kept: Path) -> None:
    metered(kept)
    shown = cli("bench", OLD, "--power-log", kept / "meter.csv", "--join", kept / "printed.json")
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    assert "J an image" in text and "95% interval" in text and "(tc66c)" in text and "above idle, 2.7" in text
    assert "the meter's own error is not in the interval" in text


def test_a_log_that_does_not_show_the_run_is_refused_with_the_run_beside_the_error(kept: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("Time[S],Volt[V],Current[A]\n" + "".join(f"{n / 200:.3f},5.0,0.5{n % 7}\n" for n in range(4000)))
    done = cli("bench", OLD, "--power-log", other, "--join", kept / "printed.json", "--json")
    error = error_of(done, 2, "power_log")
    assert "does not show the pattern" in error["message"] and error["where"] == str(other)
    assert done.document["rows"] and "does not show" in done.document["energy"]["refused"]
    assert not other.with_name("other.csv.bench.json").exists()  # that run is kept already


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [("when;what\n", "auto", "not known"), ("t,p\n", "time=t,power=q", "'q'"), ("", "watts", "neither a format")],
)
def test_a_format_that_is_not_known_is_refused_before_anything_is_measured(
    content: str, columns: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("athe_export.bench.run.measure")
    (tmp_path / "meter.csv").write_text(content)
    options = ("--power-log", tmp_path / "meter.csv", "--power-columns", columns)
    assert said in refused(2, "power_log", "bench", OLD, *options)["message"]
    assert [p.name for p in tmp_path.iterdir()] == ["meter.csv"]


def test_a_run_without_a_pattern_or_of_another_bundle_is_not_joined(kept: Path, tmp_path: Path) -> None:
    log, plain = ("--power-log", kept / "meter.csv"), cli("bench", OLD, "--json")
    assert plain.code == 0 and plain.document["energy"] is None  # without a log, no pattern
    (tmp_path / "text").write_text("no json")
    (tmp_path / "plain.json").write_text(plain.out)
    for path, said in (("missing", "No such file"), ("text", "no document"), ("plain.json", "holds no pattern")):
        assert said in refused(2, "usage", "bench", OLD, *log, "--join", tmp_path / path)["message"]
    other = shutil.copytree(OLD, tmp_path / "other")
    edit_manifest(other, lambda m: m["notes"].append("another"))
    assert "another bundle" in refused(2, "usage", "bench", other, *log, "--join", kept / "printed.json")["message"]
    for options in (("--join", kept / "printed.json"), ("--power-columns", "tc66c")):
        assert "--power-log" in refused(2, "usage", "bench", OLD, *options)["remedy"]
    again = ("--join", kept / "printed.json", "--threads", 2)
    assert "--join measures nothing" in refused(2, "usage", "bench", OLD, *log, *again)["message"]


def test_a_folder_that_is_not_there_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    assert "no such folder" in refused(2, "power_log", "bench", OLD, "--power-log", tmp_path / "no" / "meter.csv")["message"]


_IN_A_MINUTE = """
import athe_export.bench.run as bench
from athe_export import bench_power
from athe_export.bench.load_pattern import PowerPlan
from athe_export.bench.protocol import Plan
bench.QUICK, bench.QUICK_POWER = Plan(rounds=3, slice_s=0), PowerPlan(0.06, 0.04, 0.12, 0.12, 3)
from athe_export.cli import main
main()
"""


def test_on_a_terminal_bench_asks_for_the_log_until_it_is_there(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    line = [sys.executable, "-c", _IN_A_MINUTE, "bench", str(OLD), "--power-log", str(tmp_path / "meter.csv"), "--json"]
    with subprocess.Popen(line, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True, env=environment()) as bench:
        said = _until(ours, "press enter")
        assert "there is no such log" in said and "meter.csv.bench.json" in said
        os.write(ours, b"\n")  # it is not there yet
        _until(ours, "press enter")
        metered(tmp_path)
        os.write(ours, b"\n")
        assert bench.stdout is not None
        document = json.loads(bench.stdout.read())
        assert bench.wait(60) == 0
    os.close(ours)
    os.close(theirs)
    assert document["energy"]["refused"] is None and len(document["energy"]["rows"]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["meter.csv"]  # what was kept is not needed any more


def test_ctrl_c_while_a_log_is_awaited_leaves_the_run_and_says_how_to_join_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "meter.csv"
    log.write_text("Time[S],Volt[V],Current[A],Power[W]\n0.00,5,0.5,2.5\n0.01,5,0.5,2.5\n")  # a meter that still writes

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_power, "patiently", lambda join, log: patiently(join, log, sleep=stop))
    done = cli("bench", OLD, "--power-log", log, "--json")
    error = error_of(done, 130, "interrupted")
    assert f"--join {log}.bench.json" in error["remedy"] and done.document["rows"]
    metered(tmp_path)
    later = cli("bench", OLD, "--power-log", log, "--join", f"{log}.bench.json", "--json")
    assert later.code == 0 and later.document["energy"]["rows"]


@pytest.mark.parametrize("key", [KeyboardInterrupt, EOFError])
def test_ctrl_c_at_the_question_leaves_the_run_where_it_is_kept(
    kept: Path, tmp_path: Path, key: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    from athe_export.bench.join import keep, kept_run

    def stop() -> str:
        raise key

    report, log = kept_run(kept / "printed.json", OLD), tmp_path / "no.csv"
    path = keep(report.document, log)
    monkeypatch.setattr("builtins.input", stop)
    assert bench_power._asked_again(report, log, None, PowerLogError("is not there"), path) is None
    assert kept_run(path, OLD).document == report.document


def _until(terminal: int, words: str) -> str:
    """What a terminal shows up to these words."""
    said = ""
    while words not in " ".join(said.lower().split()):
        assert select.select([terminal], [], [], 60)[0], f"nothing more after: {said}"
        said += os.read(terminal, 4096).decode(errors="replace")
    return said
