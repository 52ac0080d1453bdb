"""`tune`, and `run` and `doctor` after it, on a bundle of both targets in both precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from athe_export.bench.machine import allowed_cpus
from athe_export.bench.protocol import Plan
from athe_export.bench.tune import thread_counts, tune_bundle
from athe_export.bench.tuned import Choice, remember
from athe_export.bundle.reader import open_bundle
from athe_export.errors import GateFailed
from tests.tools import blocked_python, cli, command, edit_arrays, error_of

SHORT = Plan(rounds=3, slice_s=0)
SYSTEMS = [("litert", "fp32"), ("litert", "int8"), ("onnx", "fp32"), ("onnx", "int8")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("athe_export.bench.tune.PLAN", SHORT)
    return tmp_path / "cache"


def test_every_target_precision_and_thread_count_is_tried_and_one_is_remembered(built_both: Path, cache: Path) -> None:
    tuned = tune_bundle(built_both, plan=SHORT).to_json()
    counts = thread_counts(len(allowed_cpus()))
    tried = [(t["target"], t["precision"], t["threads"]) for t in tuned["measured"]]
    assert tried == [(*system, threads) for system in SYSTEMS for threads in counts]
    assert all(t["left_out"] is None and t["typical_ms"] > 0 for t in tuned["measured"])
    chosen = next(t for t in tuned["measured"] if all(t[k] == v for k, v in tuned["chosen"].items()))
    assert chosen["times_of_chosen"]["value"] == 1.0
    assert [str(p) for p in cache.rglob("*.json")] == [tuned["remembered"]]


def test_run_takes_what_is_remembered_and_says_so_and_flags_override(built_both: Path, photo: Path) -> None:
    before = cli("run", built_both, photo, "--json").document
    assert before["target"] == "litert" and before["notes"] == []
    _remember(built_both, "onnx", "fp32", 2)
    after = cli("run", built_both, photo, "--json").document
    assert after["target"] == "onnx" and "onnx fp32 with 2 threads" in after["notes"][0]
    assert "tune has found fastest" in cli("run", built_both, photo).out
    named = cli("run", built_both, photo, "--target", "litert", "--json").document
    assert named["target"] == "litert" and named["notes"] == []
    precise = cli("run", built_both, photo, "--precision", "int8", "--json").document
    assert precise["target"] == "litert" and precise["notes"] == []


def test_threads_alone_override_threads_alone(built_both: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from athe_export.bench.fastest import fastest_predictor

    opened: list[tuple[Any, ...]] = []

    class Noted:
        def __init__(self, bundle: object, target: str = "auto", precision: str = "auto", threads: int = 1) -> None:
            opened.append((target, precision, threads))

    monkeypatch.setattr("athe_export.bench.fastest.Predictor", Noted)
    fastest_predictor(built_both, "auto", "auto", 3)
    _remember(built_both, "onnx", "fp32", 2)
    fastest_predictor(built_both, "auto", "auto", None)
    fastest_predictor(built_both, "auto", "auto", 1)
    fastest_predictor(built_both, "auto", "fp32", None)
    assert opened == [("auto", "auto", 3), ("onnx", "fp32", 2), ("onnx", "fp32", 1), ("auto", "fp32", 1)]


def test_a_choice_that_cannot_run_any_more_is_said_and_another_is_taken(built_both: Path, photo: Path) -> None:
    _remember(built_both, "onnx", "int8", 1)
    done = command("run", built_both, photo, "--json", blocked=["onnxruntime"])
    assert done.code == 0, done.err
    assert done.document["target"] == "litert" and "cannot run here now" in done.document["notes"][0]


def test_doctor_shows_what_is_remembered(built_both: Path) -> None:
    assert cli("doctor", "--json").document["tuned"] == []
    _remember(built_both, "litert", "int8", 2)
    (found,) = cli("doctor", "--json").document["tuned"]
    assert (found["name"], found["target"], found["precision"], found["threads"], found["here"]) == (
        "tiny",
        "litert",
        "int8",
        2,
        True,
    )
    assert "tuned: tiny" in cli("doctor").out


def test_tune_prints_one_document_or_a_table(built_both: Path) -> None:
    done = cli("tune", built_both, "--json")
    assert done.code == 0, done.err
    assert set(done.document) == {"bundle", "processor", "chosen", "remembered", "measured"}
    shown = cli("tune", built_both)
    assert shown.code == 0 and "chosen" in shown.out and "run takes" in shown.out


def test_a_system_that_answers_otherwise_than_where_it_was_built_is_never_chosen(bundle_both: Path) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        for name in [n for n in arrays if n.startswith("litert/") and not n.startswith("litert/router")]:
            arrays[name] = arrays[name][:, ::-1].copy()

    edit_arrays(bundle_both, "golden.npz", spoil)
    tuned = tune_bundle(bundle_both, plan=SHORT).to_json()
    assert tuned["chosen"]["target"] == "onnx"
    left = {t["target"] for t in tuned["measured"] if t["left_out"]}
    assert left == {"litert"} and all("golden" in t["left_out"] for t in tuned["measured"] if t["left_out"])


def test_where_nothing_answers_correctly_nothing_is_remembered(bundle_both: Path, cache: Path) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        for name in [n for n in arrays if n.split("/")[0] in ("litert", "onnx")]:
            arrays[name] = arrays[name] + 100

    edit_arrays(bundle_both, "golden.npz", spoil)
    with pytest.raises(GateFailed, match="nothing answers here"):
        tune_bundle(bundle_both, plan=SHORT)
    assert not cache.exists()


def test_without_an_engine_tune_says_what_to_install(built_both: Path) -> None:
    done = command("tune", built_both, "--json", blocked=["onnxruntime", "ai_edge_litert", "tflite_runtime"])
    assert "athe-export[litert]" in error_of(done, 6, "missing_dependency")["remedy"]


def test_without_the_build_extra_tune_measures(built_both: Path) -> None:
    from tests.integration.test_imports import BUILD_ONLY

    code = (
        "import sys; from pathlib import Path; from athe_export.bench.protocol import Plan;"
        "from athe_export.bench.tune import tune_bundle;"
        "print(tune_bundle(Path(sys.argv[1]), plan=Plan(rounds=2, slice_s=0)).choice.name)"
    )
    done = blocked_python(code, (*BUILD_ONLY, "typer", "rich", "yaml"), built_both)
    assert (done.returncode, done.stdout) == (0, "tiny\n"), done.stderr


def _remember(bundle: Path, target: str, precision: str, threads: int) -> None:
    from athe_export.bench.machine import processor

    remember(Choice(target, precision, threads, "tiny", open_bundle(bundle).digest, processor().key))
