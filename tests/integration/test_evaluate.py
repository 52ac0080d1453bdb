"""`evaluate` on tiny models: really built, gated, answered and timed; only the plan is smaller than that of --quick."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athe_export.bench.load_pattern import PowerPlan, timeline_from
from athe_export.bench.protocol import Plan
from athe_export.bundle.reader import open_bundle
from athe_export.errors import ExportError
from athe_export.evaluate_verb import missed_error
from athe_export.evaluation.energy import Metered
from athe_export.evaluation.files import CSV, write_files
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.evaluation.run import Evaluation, Job, evaluate
from athe_export.evaluation.variants import dense_of, is_dense, quick_variant
from athe_export.recipe import RecipeFile, load_recipe
from athe_export.report.gallery import thumbnail
from tests.conftest import BOTH, TINY, SilentWatch, write_recipe
from tests.power_example import Device, Meter, samples, write_log
from tests.tools import blocked_python, cli, error_of

PLAN = EvaluationPlan("full", 60, 12, 10, 3, Plan(rounds=2, queries=2, slice_s=0.001), photos=24)
UNTRAINED = {"name": "pruned", "checkpoint": {"random_seed": 3}, "router": None, "branches": [TINY["branches"][0]]}


def _build(file: RecipeFile, output: Path) -> None:
    from athe_export.pipeline import run_build

    run_build(file, output, SilentWatch())


def _no_build(file: RecipeFile, output: Path) -> None:
    raise AssertionError(f"{file.recipe.name} was built although it is there")


@pytest.fixture(scope="module")
def job(tiny_inputs: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A routed recipe whose bundle is there, and an untrained one with a single branch; no dense one is given."""
    folder = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(tiny_inputs, folder / "untrained")
    content = {key: value for key, value in (TINY | UNTRAINED).items() if value is not None}
    files = (load_recipe(tiny_inputs / "recipe.yaml"), load_recipe(write_recipe(folder / "untrained", content)))
    command = "athe-export evaluate recipe.yaml untrained/recipe.yaml"
    return Job(files, folder / "out", PLAN, _build, command, search=(built.parent,))


@pytest.fixture(scope="module")
def evaluated(job: Job) -> Evaluation:
    return evaluate(job, SilentWatch())


@pytest.fixture(scope="module")
def document(evaluated: Evaluation) -> dict[str, Any]:
    return dict(evaluated.document)


@pytest.fixture(scope="module")
def written(evaluated: Evaluation, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    pictures = {e["id"]: thumbnail(evaluated.dataset.image("test", e["id"])) for e in document["examples"]}
    write_files(document, pictures, folder)
    return folder


def _rows(document: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """A recipe's rows by policy."""
    return {r["policy"]: r for r in document["systems"] if r["recipe"] == name}


def test_the_dense_model_is_made_where_none_is_given_and_all_go_through_build_and_gate(document: dict[str, Any]) -> None:
    recipes = {r["name"]: r for r in document["recipes"]}
    assert {name: (r["verdict"], r["reused"], r["made_by_evaluate"]) for name, r in recipes.items()} == {
        "tiny": ("pass", True, False),
        "pruned": ("not_gated", False, False),
        "tiny_dense": ("pass", False, True),
    }
    dense = open_bundle(Path(recipes["tiny_dense"]["bundle"])).manifest
    assert document["dense"] == "tiny_dense"
    assert [(b.prune, b.head_indices) for b in dense.branches] == [((), None)] and dense.router is None


def test_top1_and_shares_are_what_the_gate_has_found_on_the_same_images(document: dict[str, Any], built: Path) -> None:
    gate, row = open_bundle(built).manifest.parity, _rows(document, "tiny")["learned"]
    assert gate is not None and row["images"] == gate["images"] == 60
    assert row["top1"]["value"] == pytest.approx(gate["targets"]["onnx"]["top1"], abs=1e-6)
    assert row["share"] == pytest.approx(gate["targets"]["onnx"]["share"], abs=1e-6)


def test_operations_and_bytes_are_those_of_the_graphs(document: dict[str, Any], built: Path) -> None:
    graphs, rows = open_bundle(built).manifest.graphs_of("onnx", "int8"), _rows(document, "tiny")
    share = rows["learned"]["share"]
    mean = graphs["router"].mmacs + sum(share[b] * graphs[b].mmacs for b in ("simple", "complex"))
    assert rows["learned"]["mmacs"] == pytest.approx(mean, abs=1e-3)
    assert rows["learned"]["mflops"] == pytest.approx(2 * mean, abs=2e-3)
    assert rows["learned"]["bytes"] == sum(g.bytes for g in graphs.values())
    assert rows["always simple"]["mmacs"] == pytest.approx(graphs["simple"].mmacs, abs=1e-3)


def test_every_time_is_a_mean_over_the_runs_and_ratios_are_against_the_dense_model(document: dict[str, Any]) -> None:
    for row in document["systems"]:
        found = row["latency_ms"]
        assert len(found["runs"]) == 3 and found["value"] == pytest.approx(np.mean(found["runs"]), rel=1e-4)
        assert (row["times_as_fast_as_dense"] is None) == row["dense"] and row["queries"] >= 6
    dense, simple = _rows(document, "tiny_dense")["single branch"], _rows(document, "tiny")["always simple"]
    ratios = np.array(dense["latency_ms"]["runs"]) / np.array(simple["latency_ms"]["runs"])
    assert simple["times_as_fast_as_dense"]["value"] == pytest.approx(ratios.mean(), rel=1e-3)


def test_untrained_weights_have_times_and_sizes_and_no_accuracy(document: dict[str, Any]) -> None:
    (row,) = _rows(document, "pruned").values()
    assert row["verdict"] == "not_gated" and row["latency_ms"] and row["bytes"]
    assert row["top1"] is row["subset"] is row["pareto"] is row["top1_minus_dense_pp"] is None
    assert "untrained" in row["top1_not_measured"]
    assert not [r for r in document["robustness"] if r["recipe"] == "pruned"]


def test_the_subset_is_balanced_and_its_top1_is_the_mean_of_its_halves(document: dict[str, Any]) -> None:
    subset = document["images"]["subset"]
    simple, hard = subset["simple"]["ids"], subset["complex"]["ids"]
    assert len(simple) == len(hard) == 12 and not set(simple) & set(hard) and subset["judge"] == "tiny_dense"
    for row in (r for r in document["systems"] if r["subset"]):
        halves = [row["subset"][name]["top1"]["value"] for name in ("simple", "complex")]
        assert row["subset"]["all"]["top1"]["value"] == pytest.approx(np.mean(halves), abs=1e-6)


def test_every_trained_system_is_measured_under_each_corruption_on_the_same_images(document: dict[str, Any]) -> None:
    for name in ("tiny", "tiny_dense"):
        found = [(r["corruption"], r["strength"]) for r in document["robustness"] if r["recipe"] == name]
        kinds = [(kind, s) for kind in ("gaussian_blur", "gaussian_noise") for s in range(1, 6)]
        assert found == [("none", 0), *kinds]
    assert {r["images"] for r in document["robustness"]} == {10}
    assert {r["share_easiest"] is None for r in document["robustness"] if r["recipe"] == "tiny_dense"} == {True}


def test_every_figure_leads_to_cells_on_the_disk_and_to_commands(document: dict[str, Any], job: Job) -> None:
    cells = {cell["key"]: cell for cell in document["cells"]}
    named = {key for row in document["systems"] for key in row["cells"]} | {r["cell"] for r in document["robustness"]}
    assert named == set(cells)
    for cell in cells.values():
        content = (job.output / "cells" / cell["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == cell["sha256"] and cell["command"] == job.command
    for recipe in document["recipes"]:
        words = recipe["command"].split()
        assert words[:2] == ["athe-export", "build"] and Path(words[2]).is_file()
        assert open_bundle(Path(recipe["bundle"])).digest == recipe["bundle_digest"]


def test_a_second_run_builds_and_measures_nothing_and_says_the_same(job: Job, document: dict[str, Any]) -> None:
    again = dict(evaluate(replace(job, build=_no_build), SilentWatch()).document)
    assert all(cell["reused"] for cell in again["cells"])
    assert not any(cell["reused"] for cell in document["cells"])
    for part in ("systems", "routers", "robustness", "examples", "images", "findings"):
        assert again[part] == document[part]


def test_a_run_that_was_cut_short_goes_on_where_it_stopped(job: Job, document: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(job.output, tmp_path / "out")
    last = [cell for cell in document["cells"] if cell["kind"] == "latency"][-1]
    (tmp_path / "out" / "cells" / last["file"]).unlink()
    again = evaluate(replace(job, output=tmp_path / "out", build=_no_build), SilentWatch()).document
    assert [cell["key"] for cell in again["cells"] if not cell["reused"]] == [last["key"]]


def test_another_seed_draws_and_times_anew_and_keeps_the_answers(job: Job, document: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(job.output, tmp_path / "out")
    plan = replace(PLAN, seed=1)
    again = evaluate(replace(job, output=tmp_path / "out", plan=plan, build=_no_build), SilentWatch()).document
    kept = {cell["key"] for cell in again["cells"] if cell["reused"]}
    assert kept == {r["cells"][0] for r in document["systems"] if r["top1"]}
    assert again["images"]["robustness"]["ids"] != document["images"]["robustness"]["ids"]


def test_a_recipe_that_cannot_be_built_is_named_and_the_others_are_evaluated(job: Job, tmp_path: Path) -> None:
    shutil.copytree(job.output, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "bundles" / "pruned")

    def build(file: RecipeFile, output: Path) -> None:
        raise ExportError(f"{file.recipe.name} has an op that nobody knows")

    found = evaluate(replace(job, output=tmp_path / "out", build=build), SilentWatch())
    assert [r["name"] for r in found.document["recipes"]] == ["tiny", "tiny_dense"]
    assert [x["recipe"] for x in found.document["not_built"]] == ["pruned"] and len(found.not_built) == 1
    assert any("pruned could not be built" in f["text"] for f in found.document["findings"])


def test_bundles_that_are_there_are_evaluated_without_torch(job: Job, document: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(job.output, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "cells")
    code = f"""
import json
from pathlib import Path, PosixPath
from athe_export.bench.load_pattern import PowerPlan, timeline_from
from athe_export.bench.protocol import Plan
from athe_export.evaluation.files import write_files
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.evaluation.run import Job, evaluate
from athe_export.recipe import load_recipe
class Watch:
    def stage(self, name): pass
    def progress(self, step, done, total): pass
files = tuple(load_recipe(Path(p)) for p in {[str(f.path) for f in job.files]!r})
output = Path({str(tmp_path / "out")!r})
found = evaluate(Job(files, output, {PLAN!r}, None, "", None, {job.search!r}), Watch())
write_files(found.document, {{}}, output)
print(json.dumps([row["top1"] for row in found.document["systems"]]))
"""
    done = blocked_python(code, ("torch", "onnx", "onnxsim", "safetensors", "filelock", "litert_torch", "ai_edge_quantizer"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [row["top1"] for row in document["systems"]]


# --- energy -----------------------------------------------------------------------------------------------------------


def test_a_power_log_gives_each_row_its_joules_and_one_that_is_refused_is_named(
    job: Job, document: dict[str, Any], tmp_path: Path
) -> None:
    """The log is written after the run, from a device of known watts that does what the run's pattern says."""
    assert {r["energy_not_measured"] for r in document["systems"]} == {"no power log was given"}
    shutil.copytree(job.output, tmp_path / "out")
    power, log = PowerPlan(chip_s=0.1, settle_s=0.05, load_s=0.2, idle_s=0.15, rounds=3), tmp_path / "meter.csv"
    metered = replace(job, output=tmp_path / "out", plan=replace(PLAN, power=power), build=_no_build, metered=Metered(log))
    missing = evaluate(metered, SilentWatch())
    assert missing.refused and "no such log" in missing.document["energy"]["refused"]
    assert all("no such log" in r["energy_not_measured"] for r in missing.document["systems"])
    error = missed_error(missing, tmp_path)
    assert error is not None and error.exit_code == 2 and "reads it again" in error.remedy

    (cell,) = [c for c in missing.document["cells"] if c["kind"] == "power"]
    pattern = json.loads((tmp_path / "out" / "cells" / cell["file"]).read_text())["content"]
    timeline = timeline_from(pattern, cell["file"])
    device = Device(rows=tuple((row, 0.01, 0.5 + 0.25 * at) for at, row in enumerate(timeline.rows)))
    write_log(log, *samples(device, Meter(hertz=200, noise_w=0.005), timeline))
    found = evaluate(metered, SilentWatch())
    assert found.refused is None and found.document["energy"]["refused"] is None
    assert [c["key"] for c in found.document["cells"] if not c["reused"]] == []
    watts, rows = {row[:2]: added for row, _, added in device.rows}, 0
    for row in found.document["systems"]:
        if row["energy_j"] is None:
            assert row["policy"] in ("oracle", "random")
            continue
        name = "(routed)" if row["policy"] == "learned" else next(iter(row["share"]))
        blocks = [b for b in timeline.blocks if timeline.rows[b.row][:2] == (row["system"], name)]
        seconds = np.mean([(b.counted_to - b.counted_from) / b.images for b in blocks])
        assert row["energy_j"]["value"] == pytest.approx(watts[row["system"], name] * seconds, rel=0.1)
        assert cell["key"] in row["cells"]
        rows += 1
    assert rows == len(timeline.rows)
    paths = write_files(dict(found.document), {}, tmp_path / "report")
    assert "J an image" in next(p for p in paths if p.suffix == ".md").read_text()


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_marks_what_was_not_gated_in_every_table(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page) and "<script" not in page and "@import" not in page
    assert page.count("<svg") >= 8 and page.count("data:image/png") == 24
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    named = [row for row in rows if "pruned, onnx int8" in row]
    assert named and all("not_gated" in row for row in named)


def test_markdown_csv_and_json_hold_the_same_figures_as_the_page(written: Path, document: dict[str, Any]) -> None:
    assert json.loads((written / "evaluation.json").read_text()) == json.loads(json.dumps(document))
    rows = list(csv.DictReader((written / "systems.csv").open()))
    assert [float(r["latency_ms.value"]) for r in rows] == [r["latency_ms"]["value"] for r in document["systems"]]
    assert all((written / f"{name}.csv").stat().st_size for name in CSV)
    page, text = (written / "report.html").read_text(), (written / "report.md").read_text()
    row = _rows(document, "tiny")["learned"]
    for figure in (f"{100 * row['top1']['value']:.1f} [", f"{row['mflops']:.1f}", f"{row['bytes'] / 1e6:.2f}"):
        assert figure in page and figure in text.replace("\\", "")
    assert all(f["kind"] in text for f in document["findings"])
    assert all(f"{e['id']} | {e['class']} |" in text for e in document["examples"])
    assert all(f"{group['score']:.3f}" in text for group in document["routers"][0]["calibration"])


# --- recipes that are made --------------------------------------------------------------------------------------------


def test_a_trained_dense_recipe_is_taken_before_one_is_made(tiny: Callable[..., Path], tmp_path: Path) -> None:
    routed = load_recipe(tiny())
    whole = replace(
        routed.recipe, name="whole", branches=(replace(routed.recipe.branches[1], prune=(), heads=3),), router=None
    )
    given = replace(routed, recipe=whole)
    assert is_dense(given) and not is_dense(routed)
    assert dense_of([routed, given], tmp_path) == (given, False)
    untrained = replace(given, recipe=replace(whole, checkpoint=replace(whole.checkpoint, path=None, random_seed=1)))
    made, new = dense_of([untrained, routed], tmp_path)
    assert new and made is not None and made.recipe.name == "tiny_dense" and is_dense(made)
    assert made.resolve(made.recipe.checkpoint.path or "") == routed.resolve("tiny.safetensors")


def test_quick_builds_one_target_at_one_precision_and_searches_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    quantize = {"calibrator": "auto", "sensitivity": {}, "keep_float": ["router.*"]}
    litert = {"precisions": ["fp32", "int8"], "quantize": quantize}
    file = load_recipe(tiny(targets=BOTH | {"litert": litert}, parity={**TINY["parity"], "stability_draws": 2}))
    found = quick_variant(file, replace(PLAN, gate_images=20, fit_images=30), tmp_path).recipe
    assert found.router is not None and found.router.fit_images == 30
    assert found.targets.names == ("litert",) and found.targets.litert is not None
    assert found.targets.litert.precisions == ("int8",) and found.data.gate.limit == 20
    made = found.targets.litert.quantize
    assert (made.calibrator, made.sensitivity, made.keep_float) == ("min_max", None, ("router.*",))
    assert found.parity.stability_draws == 0


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """--quick, quicker: a quick plan of the size that this file measures with."""
    plan = replace(PLAN, name="quick", gate_images=20, images=20, one_system=True, runs=2)
    monkeypatch.setattr("athe_export.evaluation.plan.QUICK", plan)


@pytest.mark.usefixtures("small_quick")
def test_a_gate_that_fails_ends_in_its_exit_code_with_the_report_written(tiny: Callable[..., Path], tmp_path: Path) -> None:
    strict = {"max_top1_drop_pp": 0, "min_agreement": 1.0, "min_router_agreement": 1.0, "min_sqnr_db": 99}
    only = {"name": "strict", "parity": strict, "branches": [{"name": "only", "heads": 3}]}
    recipe = write_recipe(tiny().parent, {key: value for key, value in TINY.items() if key != "router"} | only)
    done = cli("evaluate", recipe, "--quick", "-o", tmp_path / "out", "--json")
    error_of(done, 3, "gate_failed")
    found = done.document
    assert found["quick"] and [r["verdict"] for r in found["recipes"]] == ["fail"]
    assert {r["pareto"] for r in found["systems"]} == {None}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "A quick evaluation" in page and "A quick evaluation" in (tmp_path / "out" / "report.md").read_text()
    again = cli("evaluate", recipe, "--quick", "-o", tmp_path / "out")
    assert again.code == 3 and "the parity gate failed: strict" in again.err and "× as fast as dense" in again.out


def test_recipes_of_different_data_are_refused_before_anything_is_written(tiny: Callable[..., Path], tmp_path: Path) -> None:
    first = tiny()
    other = tmp_path / "other"
    shutil.copytree(first.parent, other)
    content = TINY | {"name": "other", "data": TINY["data"] | {"gate": {"split": "holdout", "limit": 60}}}
    done = cli("evaluate", first, write_recipe(other, content), "-o", tmp_path / "out", "--json")
    assert "different data" in error_of(done, 2, "usage")["message"]
    assert not (tmp_path / "out" / "cells").exists() and not (tmp_path / "out" / "report.html").exists()


def test_two_recipes_of_one_name_and_a_missing_checkpoint_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny()
    done = cli("evaluate", recipe, recipe, "-o", tmp_path / "out", "--json")
    assert "two recipes are called tiny" in error_of(done, 2, "usage")["message"]
    (recipe.parent / "tiny.safetensors").unlink()
    error_of(cli("evaluate", recipe, "-o", tmp_path / "out", "--json"), 2, "checkpoint")
    assert not (tmp_path / "out").exists()
