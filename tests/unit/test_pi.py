"""The scripts that emulate a Raspberry Pi 4, as far as they need no emulator; what does is in test_pi_emulated.py."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pi.baseline import GROWTH, compare, read_baseline, write_baseline
from pi.check_bundle import BIT_EQUAL, FP32, asked_of, broken, has_vnni
from pi.count_instructions import agreed, counted, hold_against, last_mark, subjects_of
from pi.land import died
from pi.measure_install import LIMIT, measure

from tests.conftest import ROOT

PI = ROOT / "scripts" / "pi"
BASELINE = {"quickstart": {"onnxruntime 1.0": {"simple int8": 1000, "router fp32": 10}}}


def rows(agree: int = 2, routed: bool = False, **instructions: int) -> list[dict[str, Any]]:
    """Rows as they are counted, of one engine; `simple_int8` for `simple int8`."""
    return [
        {"engine": "onnxruntime 1.0", "graph": n.replace("_", " "), "instructions": k, "routed": routed}
        | {"runs": 6, "agree": agree, "spread": 0 if agree == 6 else 7}
        for n, k in instructions.items()
    ]


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    (tmp_path / "instructions.json").write_text(json.dumps(BASELINE))
    return tmp_path / "instructions.json"


# --- counts and their baseline ----------------------------------------------------------------------------------------


def test_the_counts_are_those_between_the_two_marks() -> None:
    lines = '{"tag": 1, "instructions": 900}\n{"tag": 2, "instructions": 7, "not_on_pi": 0}\n'
    assert last_mark(lines) == {"instructions": 7, "not_on_pi": 0}
    assert last_mark('{"tag": 1, "instructions": 900}\n') is None


@pytest.mark.parametrize(("now", "code"), [(1000, 0), (1020, 0), (1021, 3), (500, 0)])
def test_growth_over_two_percent_fails_and_less_does_not(baseline: Path, now: int, code: int) -> None:
    assert GROWTH == 2
    assert hold_against(baseline, "quickstart", rows(simple_int8=now, router_fp32=10)) == code


def test_a_row_without_a_baseline_is_undecided_and_named(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hold_against(baseline, "quickstart", rows(simple_int8=1000, router_fp32=10, complex_int8=3)) == 4
    assert "complex int8: 3 instructions, no baseline" in capsys.readouterr().err
    assert hold_against(baseline, "another", rows(simple_int8=1000)) == 4
    other = [row | {"engine": "onnxruntime 2.0"} for row in rows(simple_int8=1000, router_fp32=10)]
    assert hold_against(baseline, "quickstart", other) == 4


def test_a_row_of_the_baseline_that_was_not_counted_is_undecided(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hold_against(baseline, "quickstart", rows(simple_int8=1000)) == 4
    assert "router fp32: in the baseline, and not counted" in capsys.readouterr().err


def test_growth_outranks_a_row_without_a_baseline(baseline: Path) -> None:
    assert hold_against(baseline, "quickstart", rows(simple_int8=2000, router_fp32=10, complex_int8=3)) == 3


@pytest.mark.parametrize(
    ("totals", "taken"),
    [
        ((5, 5), (5, 2)),
        ((5, 9, 5), (5, 2)),
        ((5, 9, 9), (9, 2)),
        ((9, 9, 5, 5), (5, 2)),
        ((7, 5, 9), (5, 1)),
        ((5,), (5, 1)),
    ],
)
def test_the_least_count_that_two_runs_agree_on_is_taken(totals: tuple[int, ...], taken: tuple[int, int]) -> None:
    assert agreed(totals) == taken


def test_a_graph_must_repeat_to_the_instruction_and_a_routed_image_need_not(
    baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hold_against(baseline, "quickstart", rows(agree=1, simple_int8=1000, router_fp32=10)) == 3
    assert "simple int8: no two of 6 runs agree, which are up to 7 instructions apart" in capsys.readouterr().err
    baseline.write_text(json.dumps({"quickstart": {"onnxruntime 1.0": {"routed simple": 1000}}}))
    assert hold_against(baseline, "quickstart", rows(agree=1, routed=True, routed_simple=1000)) == 0


def test_counting_a_version_anew_leaves_other_versions_and_bundles(baseline: Path) -> None:
    write_baseline(baseline, read_baseline(baseline), "quickstart", {"onnxruntime 2.0": {"simple int8": 5}})
    write_baseline(baseline, read_baseline(baseline), "other", {"onnxruntime 1.0": {"simple int8": 6}})
    found = read_baseline(baseline)
    assert found["quickstart"] == BASELINE["quickstart"] | {"onnxruntime 2.0": {"simple int8": 5}}
    assert found["other"] == {"onnxruntime 1.0": {"simple int8": 6}}
    (row,) = compare(found, "other", {"onnxruntime 1.0": {"simple int8": 6}})
    assert row.growth == 0


@pytest.mark.parametrize("text", ["[]", '{"a": {"b": {"c": 0}}}', '{"a": {"b": {"c": "1"}}}'])
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ValueError, match="not a baseline"):
        read_baseline(tmp_path / "b.json")


def test_the_committed_baseline_has_every_row_of_the_quickstart_in_the_pinned_versions() -> None:
    pins = dict(line.split("==") for line in (ROOT / "scripts" / "constraints.txt").read_text().split())
    found = read_baseline(PI / "instructions.json")["quickstart"]
    graphs = {"router fp32", "simple int8", "complex int8", "routed simple", "routed complex"}
    for engine in ("onnxruntime", "ai-edge-litert"):
        assert set(found[f"{engine} {pins[engine]}"]) == graphs


def test_a_bundle_is_counted_graph_by_graph_and_by_a_routed_image_a_branch() -> None:
    found = subjects_of(ROOT / "tests" / "bundles" / "v1" / "tiny")
    names = {(s.target, s.name) for s in found}
    assert names == {("onnx", n) for n in ("router fp32", "simple int8", "complex int8", "routed simple", "routed complex")}
    assert all((s.bytes is None) == s.name.startswith("routed") for s in found)
    assert counted(rows(a=1, b=2)) == {"onnxruntime 1.0": {"a": 1, "b": 2}}


def test_what_is_neither_a_graph_nor_a_bundle_ends_with_2(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, PI / "count_instructions.py", tmp_path, tmp_path], capture_output=True, text=True
    )
    assert child.returncode == 2 and "neither a bundle nor" in child.stderr


def test_one_run_is_not_held_against_a_baseline_since_it_cannot_show_that_it_repeats(tmp_path: Path) -> None:
    bundle = ROOT / "tests" / "bundles" / "v1" / "tiny"
    for options in (["--runs", "1", "--baseline", PI / "instructions.json"], ["--runs", "0"]):
        line = [sys.executable, PI / "count_instructions.py", tmp_path, bundle, *options]
        child = subprocess.run(line, capture_output=True, text=True)
        assert child.returncode == 2 and "--runs counts from" in child.stderr


def test_a_folder_that_is_no_user_land_is_said_to_be_not_run(tmp_path: Path) -> None:
    graph = ROOT / "tests" / "bundles" / "v1" / "tiny" / "onnx" / "simple.int8.onnx"
    child = subprocess.run([sys.executable, PI / "count_instructions.py", tmp_path, graph], capture_output=True, text=True)
    assert child.returncode == 7 and "not run" in child.stderr and child.stdout == ""


def test_a_graph_runs_in_its_own_process_and_gives_what_the_engine_gives(tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime

    graph = ROOT / "tests" / "bundles" / "v1" / "tiny" / "onnx" / "complex.int8.onnx"
    subprocess.run([sys.executable, PI / "run_graph.py", graph, tmp_path / "i.npz", tmp_path / "o.npy"], check=True)
    with np.load(tmp_path / "i.npz") as inputs:
        expected = onnxruntime.InferenceSession(graph).run(None, dict(inputs))[0]
    assert np.array_equal(np.load(tmp_path / "o.npy"), expected)


# --- what is asked for beyond verify ----------------------------------------------------------------------------------


def golden(precision: str, difference: float, passed: bool = True) -> dict[str, Any]:
    return {
        "target": "onnx",
        "role": "simple",
        "precision": precision,
        "passed": passed,
        "bit_equal": difference == 0,
        "max_abs_diff": difference,
    }


def test_fp32_may_differ_by_1e_5_and_no_more() -> None:
    assert broken([golden("fp32", FP32)], ()) == []
    assert "1.1e-05" in broken([golden("fp32", 1.1e-5)], ())[0]


def test_an_int8_graph_that_was_equal_bit_for_bit_must_stay_so_and_another_need_not() -> None:
    off = golden("int8", 1e-7)
    assert broken([off], ()) == []
    assert len(broken([off], ("onnx simple int8",))) == 1
    assert broken([golden("int8", 0)], ("onnx simple int8",)) == []


def test_a_graph_that_must_be_equal_bit_for_bit_and_was_not_run_is_broken() -> None:
    (line,) = broken([golden("int8", 0)], ("onnx simple int8", "onnx complex int8"))
    assert "onnx complex int8" in line and "has not run it" in line


def test_bit_equality_is_asked_for_by_the_name_in_the_manifest_and_what_is_not_asked_is_said() -> None:
    both = BIT_EQUAL["quickstart"]
    assert asked_of("quickstart", ["onnx", "litert"], vnni=True) == (both, None)
    assert asked_of("quickstart", ["litert"], vnni=True) == (("litert simple int8",), None)
    equal, why = asked_of("quickstart", ["litert"], vnni=False)
    assert equal == () and "VNNI" in why
    assert asked_of("tiny", ["onnx"], vnni=False) == (BIT_EQUAL["tiny"], None)
    for name, targets in (("another", ["onnx"]), ("tiny", ["litert"])):
        equal, why = asked_of(name, targets, vnni=True)
        assert equal == () and name in why
    manifest = json.loads((ROOT / "tests/bundles/v1/tiny/manifest.json").read_text())
    assert manifest["name"] in BIT_EQUAL


def test_what_verify_does_not_pass_is_broken_whatever_it_is() -> None:
    assert len(broken([golden("int8", 0.5, passed=False)], ())) == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f avx512_vnni", True), ("fpu avx2 avx_vnni", True), ("fpu avx2", False), ("xavx_vnnix", False)],
)
def test_a_processor_with_vnni_is_known_by_its_flags(flags: str, expected: bool) -> None:
    assert has_vnni(f"processor\t: 0\nflags\t\t: {flags}\n") is expected


@pytest.mark.parametrize("code", [132, -4])
def test_a_guest_that_meets_an_instruction_it_does_not_have_is_said_to_be_killed_by_it(code: int) -> None:
    assert died(subprocess.CompletedProcess([], code, "", "core dumped")) == "killed by SIGILL"
    assert died(subprocess.CompletedProcess([], 1, "", "a\nwhat it was\n")) == "what it was"


def test_the_user_land_answers_as_a_pi_4_and_knows_no_dot_product(tmp_path: Path) -> None:
    subprocess.run([PI / "write_pi4_system_files.sh", tmp_path], check=True)
    cpuinfo = (tmp_path / "proc" / "cpuinfo").read_text()
    assert cpuinfo.count("CPU part\t: 0xd08") == cpuinfo.count("processor\t") == 4  # 0xd08: Cortex-A72
    features = set(cpuinfo.partition("Features\t: ")[2].splitlines()[0].split())
    assert "asimd" in features and not features & {"asimddp", "aes", "pmull", "sha1", "sha2"}


# --- thin installs ----------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, size: int = 10) -> None:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(size))


def test_a_thin_install_is_measured_unpacked(tmp_path: Path) -> None:
    wheel(tmp_path, "numpy-2.4.6-cp311-cp311-manylinux_2_28_aarch64.whl", 10_000)
    wheel(tmp_path, "typer-0.28.0-py3-none-any.whl")
    downloaded, sizes, wrong = measure(tmp_path)
    assert (sizes, wrong) == ({"numpy": 10_000, "typer": 10}, []) and 0 < downloaded < 10_000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torch-2.13.0-cp311-cp311-manylinux_2_28_aarch64.whl", "build extra"),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl", "another processor"),
        ("numpy-2.4.6.tar.gz", "compiled on the device"),
    ],
)
def test_what_does_not_belong_into_a_thin_install_is_named(tmp_path: Path, name: str, said: str) -> None:
    wheel(tmp_path, name)
    assert any(said in line for line in measure(tmp_path)[2])


def test_torch_is_said_to_be_absent_only_where_it_is_and_bytecode_is_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "typer-0.28.0-py3-none-any.whl", "w") as file:
        file.writestr("a.py", "x = 'a' * 3\n" * 20_000)
    line = [sys.executable, PI / "measure_install.py", tmp_path]
    shown = subprocess.run(line, capture_output=True, text=True)
    assert shown.returncode == 0 and "no torch" in shown.stdout and "a.py 0.2 MB" in shown.stdout
    assert "0.0 MB of bytecode" not in shown.stdout and "MB of bytecode" in shown.stdout
    wheel(tmp_path, "torch-2.13.0-cp311-cp311-manylinux_2_28_aarch64.whl")
    shown = subprocess.run(line, capture_output=True, text=True)
    assert shown.returncode == 3 and "no torch" not in shown.stdout


def test_a_thin_install_over_the_limit_is_said_to_be(tmp_path: Path) -> None:
    wheel(tmp_path, "numpy-2.4.6-cp311-cp311-manylinux_2_28_aarch64.whl", LIMIT + 1)
    assert any("150 are allowed" in line for line in measure(tmp_path)[2])


@pytest.mark.parametrize("name", ["count_instructions", "check_bundle", "collect_wheels"])
def test_a_script_shows_its_help_with_an_example(name: str) -> None:
    shown = subprocess.run([sys.executable, PI / f"{name}.py", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and f"python scripts/pi/{name}.py" in shown.stdout
