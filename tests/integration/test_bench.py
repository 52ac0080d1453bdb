"""`build --controls` and `bench`, on a tiny bundle for both targets that is really built and really run. No time is asserted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athe_export.bench.controls import find_controls
from athe_export.bench.protocol import Plan
from athe_export.bench.rows import ImageToLabel, png
from athe_export.bench.run import bench_bundle
from athe_export.bundle.reader import open_bundle
from athe_export.data.shapes import Shapes
from athe_export.errors import RecipeError
from athe_export.runtime.golden import read_golden
from athe_export.runtime.predictor import Predictor, RoutedGraphs, labels_of, preprocessing_of
from athe_export.verify import verify_bundle
from tests.conftest import TINY, SilentWatch, write_recipe
from tests.integration.test_imports import BUILD_ONLY
from tests.tools import cli, command, edit_manifest, error_of, refused

# the controls then add fp32 branches of ONNX and int8 ones of LiteRT, and dense graphs of all four systems
TARGETS = {"onnx": {"opset": 20}, "litert": {"precisions": ["fp32"]}}
OLD = Path(__file__).parent.parent / "bundles/v1/tiny"
SHORT = Plan(rounds=3, slice_s=0)
ROW = {
    *("system", "kind", "target", "precision", "threads", "n", "p50_ms", "p90_ms", "p99_ms", "typical_ms", "graph_ms"),
    *("parts_ms", "top1", "bytes", "stored_bytes", "vs_dense_same_precision", "vs_dense_fp32", "pruning", "quantization"),
    *("graph_vs_dense_same_precision", "not_measured"),
}
TOP = {
    *("bundle", "machine", "protocol", "rows", "ratios", "accuracy", "cold_start_ms", "peak_rss_mb", "cold_start"),
    *("energy", "limits", "verdict", "not_run"),
}


@pytest.fixture(scope="module")
def with_controls(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with controls beside it, its recipe asking for speed."""
    from athe_export.pipeline import run_build
    from athe_export.recipe import load_recipe

    folder = tmp_path_factory.mktemp("controls")
    shutil.copytree(tiny_inputs, folder, dirs_exist_ok=True)
    recipe = write_recipe(folder, TINY | {"targets": TARGETS, "bench": {"min_speedup_simple": 0.001}})
    watch = SilentWatch()
    run_build(load_recipe(recipe), folder / "bundle", watch, controls=True)
    (folder / "stages.json").write_text(json.dumps(watch.stages))
    return folder / "bundle"


@pytest.fixture
def both_folders(with_controls: Path, tmp_path: Path) -> Path:
    """A private copy of the bundle and its controls."""
    shutil.copytree(with_controls, tmp_path / "bundle")
    shutil.copytree(controls_of(with_controls), tmp_path / "bundle.controls")
    return tmp_path / "bundle"


def controls_of(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.controls")


@pytest.fixture(scope="module")
def document(with_controls: Path) -> dict[str, Any]:
    """What a short bench of it finds."""
    return dict(bench_bundle(with_controls, plan=SHORT).document)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick plan made quicker: what is measured is the same."""
    monkeypatch.setattr("athe_export.bench.run.QUICK", SHORT)


# --- controls ---------------------------------------------------------------------------------------------------------


def test_controls_are_a_bundle_of_every_graph_in_both_precisions_with_the_dense_backbone(with_controls: Path) -> None:
    manifest = open_bundle(controls_of(with_controls)).manifest
    roles = ("simple", "complex", "dense")
    branches = {(t, r, p) for t in ("onnx", "litert") for r in roles for p in ("int8", "fp32")}
    assert {(g.target, g.role, g.precision) for g in manifest.graphs} == branches | {
        ("onnx", "router", "fp32"),
        ("litert", "router", "fp32"),
    }
    dense = next(b for b in manifest.branches if b.name == "dense")
    assert dense.prune == () and dense.heads == 3
    assert not [g for g in manifest.graphs if g.precision == "int8" and not g.int8_ops]


def test_controls_verify_and_route_as_the_bundle_does(with_controls: Path) -> None:
    report = verify_bundle(controls_of(with_controls))
    assert report.golden and all(g.passed for g in report.golden) and not report.not_run
    ours, theirs = (Predictor.load(p, "onnx") for p in (with_controls, controls_of(with_controls)))
    images = [Shapes().image("test", i) for i in range(20)]
    found = [(ours.predict(i), theirs.predict(i)) for i in images]
    assert {a.branch for a, _ in found} == {"simple", "complex"}
    assert [(a.branch, a.label, a.router_score) for a, _ in found] == [(b.branch, b.label, b.router_score) for _, b in found]


def test_what_the_bundle_holds_is_in_the_controls_byte_by_byte(with_controls: Path) -> None:
    ours, theirs = (
        {(g.target, g.role, g.precision): open_bundle(path).graph(g) for g in open_bundle(path).manifest.graphs}
        for path in (with_controls, controls_of(with_controls))
    )
    assert ours and ours.items() <= theirs.items()
    lenders = {
        (g.target, g.precision): g.file for g in open_bundle(controls_of(with_controls)).manifest.graphs if g.role == "dense"
    }
    for graph in open_bundle(controls_of(with_controls)).manifest.graphs:
        shares = graph.role not in ("router", "dense")
        assert (graph.borrows and graph.borrows.file) == (lenders[graph.target, graph.precision] if shares else None)


def test_the_dense_control_is_the_whole_backbone_and_its_accuracy_is_that_of_its_answers(
    with_controls: Path, tiny_inputs: Path
) -> None:
    import torch

    from athe_export.branches import build_branch
    from athe_export.model.checkpoint import build_model, read_checkpoint
    from athe_export.recipe import BranchSpec, load_recipe

    path = tiny_inputs / "tiny.safetensors"
    model, _ = build_model(load_recipe(tiny_inputs / "recipe.yaml").recipe, read_checkpoint(path, None), str(path))
    module = build_branch(model.eval(), BranchSpec("dense", 3)).module
    controls, shapes = open_bundle(controls_of(with_controls)), Shapes()
    graphs, preprocessing, right = RoutedGraphs(controls, "onnx", "fp32"), preprocessing_of(controls.manifest), 0
    for i in range(60):  # the gate's
        source = preprocessing.source(shapes.image("test", i))
        logits = graphs.answer(source, preprocessing, "dense").logits
        with torch.no_grad():
            whole = module(torch.from_numpy(preprocessing.tensor(source, 32))).numpy()[0]
        np.testing.assert_allclose(logits, whole, atol=1e-4)
        right += int(logits.argmax() == shapes.labels("test")[i])
    assert controls.manifest.controls is not None
    accuracy = {(a["target"], a["precision"]): a for a in controls.manifest.controls["accuracy"]}
    assert set(accuracy) == {(t, p) for t in ("onnx", "litert") for p in ("int8", "fp32")}
    assert accuracy["onnx", "fp32"]["images"] == 60 and accuracy["onnx", "fp32"]["top1"] == pytest.approx(
        right / 60, abs=1e-5
    )


def test_a_build_without_controls_leaves_those_of_an_earlier_one_and_bench_does_not_take_them(
    both_folders: Path,
) -> None:
    assert find_controls(open_bundle(both_folders))[0] is not None
    edit_manifest(both_folders, lambda m: m["recipe"].update(sha256="0" * 64))
    found, why = find_controls(open_bundle(both_folders))
    assert found is None and "another build" in why


def test_controls_of_other_graphs_are_not_taken(both_folders: Path) -> None:
    def other(manifest: dict[str, Any]) -> None:
        graph = next(g for g in manifest["graphs"] if g["role"] == "simple")
        entry = next(f for f in manifest["files"] if f["path"] == graph["file"])
        graph["sha256"] = entry["sha256"] = "0" * 64

    edit_manifest(controls_of(both_folders), other)
    refused(5, "bundle_integrity", "bench", both_folders)  # the file itself is as it was


def test_damaged_controls_are_an_error_and_not_a_bench_without_them(both_folders: Path) -> None:
    (controls_of(both_folders) / "onnx/dense.int8.onnx").write_bytes(b"")
    error = refused(5, "bundle_integrity", "bench", both_folders)
    assert "onnx/dense.int8.onnx" in error["message"]


def test_a_pruned_branch_called_dense_is_refused_with_controls_before_anything_is_made(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from athe_export.pipeline import run_build
    from athe_export.recipe import load_recipe

    branches = [{**TINY["branches"][0], "name": "dense"}, TINY["branches"][1]]
    file = load_recipe(tiny(branches=branches))
    with pytest.raises(RecipeError, match="has that name"):
        run_build(file, tmp_path / "bundle", SilentWatch(), controls=True)
    assert not list(tmp_path.glob("*bundle*"))


def test_a_dry_run_lists_what_controls_take_and_writes_nothing(with_controls: Path, tmp_path: Path) -> None:
    folder = with_controls.parent
    plan = cli("build", folder / "recipe.yaml", "-o", tmp_path / "out", "--controls", "--dry-run", "--json").document
    assert plan["stages"] == json.loads((folder / "stages.json").read_text())
    assert plan["controls"] == str(tmp_path / "out.controls") and not list(tmp_path.iterdir())


def test_a_plain_model_has_controls_too(tiny: Callable[..., Path], tmp_path: Path) -> None:
    only = {"branches": [TINY["branches"][0]], "router": None, "checkpoint": {"random_seed": 3}}
    built = command("build", tiny(**only), "-o", tmp_path / "out", "--controls", "--json")
    assert built.code == 0, built.err
    found = bench_bundle(tmp_path / "out", plan=SHORT).document
    rows = {(r["system"], r["precision"]): r for r in found["rows"]}
    assert set(rows) == {(s, p) for s in ("simple", "dense") for p in ("int8", "fp32")}
    assert all(r["not_measured"] is None and r["n"] for r in rows.values())
    assert found["ratios"]["routed_simple_vs_dense_same_precision"] > 0 and found["accuracy"]["images"] is None


# --- bench ------------------------------------------------------------------------------------------------------------


def test_every_row_is_measured_where_there_are_controls(document: dict[str, Any]) -> None:
    assert set(document) == TOP
    rows = {(r["target"], r["system"], r["precision"]): r for r in document["rows"]}
    systems = ("simple", "complex", "routed", "routed_simple", "dense")
    expected = {(t, s, p) for t in ("onnx", "litert") for s in systems for p in ("int8", "fp32")}
    assert set(rows) == expected | {("onnx", "router", "fp32"), ("litert", "router", "fp32")}
    for row in rows.values():
        assert set(row) == ROW and row["not_measured"] is None and row["n"] >= 3
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["graph_ms"] < row["p99_ms"] and row["bytes"] > 0 and row["stored_bytes"] > 0
        assert row["kind"] != "routed" or row["stored_bytes"] < row["bytes"]
    assert all(
        v is not None and v > 0 for n, v in document["ratios"].items() if n not in ("target", "precision", "intervals")
    )


def test_parts_are_those_that_the_row_goes_through(document: dict[str, Any]) -> None:
    for row in document["rows"]:
        took = {part for part, ms in row["parts_ms"].items() if ms}
        through = {"router": {"router"}, "branch": {"branch"}, "dense": {"branch"}}.get(row["kind"], {"router", "branch"})
        assert took == {"decode", "resize"} | through


def test_the_gates_accuracy_stands_beside_every_ratio(document: dict[str, Any], with_controls: Path) -> None:
    parity = open_bundle(with_controls).manifest.parity
    assert parity is not None
    rows = {(r["target"], r["system"], r["precision"]): r["top1"] for r in document["rows"]}
    for target, precision in (("onnx", "int8"), ("litert", "fp32")):  # what the bundle holds
        assert rows[target, "routed", precision] == parity["targets"][target]["top1"]
    assert rows["onnx", "routed", "fp32"] is not None  # a hop on the way to int8
    assert rows["litert", "routed", "int8"] is None  # the gate has never seen these graphs
    assert all(rows[t, "dense", p] is not None for t in ("onnx", "litert") for p in ("int8", "fp32"))
    assert document["accuracy"]["reference_top1"] == parity["reference"]["top1"]


def test_a_fresh_process_says_what_it_took(document: dict[str, Any]) -> None:
    assert [(c["target"], c["precision"]) for c in document["cold_start"]] == [("onnx", "int8"), ("litert", "fp32")]
    for cold in document["cold_start"]:
        parts = [cold[n] for n in ("import_ms", "load_ms", "first_answer_ms")]
        assert cold["not_measured"] is None and cold["cold_start_ms"] == pytest.approx(sum(parts), abs=0.1)
        assert all(p > 0 for p in parts) and cold["peak_rss_mb"] > cold["rss_before_graphs_mb"] > 10
    litert = document["cold_start"][1]  # what run takes
    assert (document["cold_start_ms"], document["peak_rss_mb"]) == (litert["cold_start_ms"], litert["peak_rss_mb"])


def test_the_machine_and_the_protocol_stand_in_the_report(document: dict[str, Any]) -> None:
    machine = document["machine"]
    assert machine["processor"] and machine["cpus"] >= 1 and len(machine["pinned_to"]) == 1
    assert {"numpy", "onnxruntime", "ai_edge_litert"} <= set(machine["packages"])
    assert machine["noisy"] == bool(machine["noise"])
    assert document["protocol"]["batch"] == 1 and document["protocol"]["full"] is False


def test_a_query_gives_the_answer_that_run_gives(with_controls: Path) -> None:
    bundle, predictor = open_bundle(with_controls), Predictor.load(with_controls, "onnx")
    images, graphs = list(read_golden(bundle)["images"]), RoutedGraphs(bundle, "onnx")
    query = ImageToLabel(graphs, preprocessing_of(bundle.manifest), [png(i) for i in images], labels_of(bundle))
    assert [query().kind for _ in images] == [predictor.predict(image).branch for image in images]


def test_bench_prints_one_document_and_ratios_beside_its_times(both_folders: Path, short: None) -> None:
    done = cli("bench", both_folders, "--json")
    assert done.code == 0, done.err
    assert set(done.document) == TOP and done.document["verdict"] == "pass"
    shown = cli("bench", both_folders, "--target", "onnx")
    assert shown.code == 0 and "vs dense" in shown.out and "gate top-1" in shown.out and "pinned to CPU" in shown.out
    assert "onnx.min_speedup_simple" in shown.out and "litert" not in shown.out


def test_a_speed_that_is_surely_missed_ends_in_code_3_with_every_figure(both_folders: Path, short: None) -> None:
    edit_manifest(both_folders, lambda m: m["bench"].update(min_speedup_simple=900.0))
    done = cli("bench", both_folders, "--json")
    error = error_of(done, 3, "gate_failed")
    assert "onnx.min_speedup_simple" in error["message"] and "at least 900" in error["message"]
    assert set(done.document) == TOP | {"error"} and done.document["verdict"] == "fail"


def test_a_speed_that_cannot_be_measured_ends_in_code_4_and_names_what_is_missing(both_folders: Path, short: None) -> None:
    shutil.rmtree(controls_of(both_folders))
    error = error_of(cli("bench", both_folders, "--json"), 4, "gate_inconclusive")
    assert "not measured" in error["message"] and "--controls" in error["message"]


def test_an_old_bundle_without_controls_is_measured_and_its_gaps_are_said(tmp_path: Path, short: None) -> None:
    old = shutil.copytree(OLD, tmp_path / "old")
    done = cli("bench", old, "--json")
    assert done.code == 0, done.err
    rows = {(r["system"], r["precision"]): r for r in done.document["rows"]}
    assert (
        all(rows[s, "int8"]["n"] for s in ("simple", "complex", "routed", "routed_simple")) and rows["router", "fp32"]["n"]
    )
    gaps = [r for r in rows.values() if r["not_measured"]]
    assert {(r["system"], r["precision"]) for r in gaps} == {
        ("dense", "int8"),
        *((s, "fp32") for s in ("simple", "complex", "routed", "routed_simple", "dense")),
    }
    assert all("old.controls" in r["not_measured"] for r in gaps)
    assert done.document["limits"] == [] and done.document["verdict"] is None
    shown = cli("bench", old)
    assert shown.code == 0 and "not measured" in shown.out


def test_without_the_build_extra_bench_measures_as_it_does_with_it(both_folders: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from athe_export.bench.protocol import Plan;"
        "from athe_export.bench.run import bench_bundle;"
        "print(json.dumps(dict(bench_bundle(Path(sys.argv[1]), target='onnx', plan=Plan(rounds=2, slice_s=0)).document)))"
    )
    from tests.tools import blocked_python

    done = blocked_python(code, (*BUILD_ONLY, "typer", "rich", "yaml"), both_folders)
    assert done.returncode == 0, done.stderr
    assert all(r["n"] for r in json.loads(done.stdout)["rows"])


def test_a_target_whose_engine_is_missing_is_named_and_the_other_is_measured(both_folders: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from athe_export.bench.protocol import Plan;"
        "from athe_export.bench.run import bench_bundle;"
        "print(json.dumps(dict(bench_bundle(Path(sys.argv[1]), plan=Plan(rounds=2, slice_s=0)).document)))"
    )
    from tests.tools import blocked_python

    done = blocked_python(code, ("onnxruntime",), both_folders)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {r["target"] for r in found["rows"]} == {"litert"}
    assert [n["target"] for n in found["not_run"]] == ["onnx"] and "onnxruntime" in found["not_run"][0]["why"]


def test_more_threads_than_cpus_are_refused(both_folders: Path) -> None:
    assert "CPUs" in refused(2, "usage", "bench", both_folders, "--threads", "4096")["message"]


def test_a_bundle_that_was_changed_is_not_measured(both_folders: Path) -> None:
    (both_folders / "labels.txt").write_text("other\n")
    refused(5, "bundle_integrity", "bench", both_folders)


@pytest.mark.parametrize(
    "change",
    [{"bench": {"min_speedup_simple": "3"}}, {"bench": {"int8_not_slower_than_fp32": 1}}, {"controls": {"accuracy": [{}]}}],
)
def test_a_manifest_whose_limits_or_controls_are_malformed_is_refused(both_folders: Path, change: dict[str, Any]) -> None:
    edit_manifest(both_folders, lambda m: m.update(change))
    refused(5, "bundle_integrity", "bench", both_folders)
