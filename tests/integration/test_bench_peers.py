"""scripts/bench_peers.py on the tiny model, with the tools that a build needs anyway."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peers import rates
from peers.document import document
from peers.measure import REFERENCE, Measured, run
from peers.ours import bundle_of
from peers.peer import OURS, RATES, Job
from peers.prepare import write_job
from peers.rates import AS_TRAINED, DEPLOYED

from athe_export.bench.protocol import Plan
from athe_export.bundle.reader import open_bundle
from athe_export.pipeline import prepare
from athe_export.recipe import load_recipe
from athe_export.stages import StageTimer
from tests.conftest import SilentWatch

PLAN = Plan(rounds=2, slice_s=0, warm_up=1)
FAMILIES = ("torch", "onnxruntime", "litert", OURS, RATES)


@pytest.fixture(scope="module")
def job(built_both: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What peers are given of the tiny recipe, and the bundle that was built of it."""
    timer = StageTimer(SilentWatch())
    prepared = prepare(load_recipe(built_both.parent / "recipe.yaml"), None, None, timer)
    return write_job(prepared, tmp_path_factory.mktemp("job"), built_both, 24, 8, timer)


@pytest.fixture(scope="module")
def measured(job: Job) -> Measured:
    """A run of them; compiling with torch is left to the script, since it takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        patch.setattr(rates, "SHAPES", 1)
        return run(job, FAMILIES, PLAN, {}, StageTimer(SilentWatch()))


def test_each_row_is_measured_or_said_not_to_be_with_a_reason(measured: Measured) -> None:
    every = {*measured.rows, *measured.rates}
    assert {*measured.series} | {*measured.not_measured} == every
    assert not {*measured.series} & {*measured.not_measured}
    for row, why in measured.not_measured.items():
        assert row.family not in FAMILIES or row.family == OURS, f"{row.name}: {why}"
        assert "left out" in why or "controls" in why, f"{row.name}: {why}"


def test_every_fp32_peer_answers_as_torch_does(measured: Measured) -> None:
    reference = {row.graph: found.outputs for row, found in measured.answers.items() if row.peer == REFERENCE}
    compared = [row for row in measured.answers if row.precision == "fp32" and row.graph in reference]
    assert {row.family for row in compared} == {"torch", "onnxruntime", "litert", OURS}
    for row in compared:
        np.testing.assert_allclose(measured.answers[row].outputs, reference[row.graph], atol=1e-3, err_msg=row.name)


def test_every_int8_peer_answers_nearly_as_torch_does(measured: Measured) -> None:
    reference = {row.graph: found.outputs for row, found in measured.answers.items() if row.peer == REFERENCE}
    for row in (row for row in measured.answers if row.precision == "int8" and row.graph in reference):
        far = np.abs(measured.answers[row].outputs - reference[row.graph]).mean() / np.abs(reference[row.graph]).mean()
        assert 0 < far < 0.5, row.name  # not the fp32 graph, and not noise


def test_a_routed_simple_image_is_one_that_the_bundle_routes_so(measured: Measured, job: Job) -> None:
    routed = [row for row in measured.answers if row.graph == "routed simple"]
    assert len(routed) == 4  # both engines in both precisions
    for row in routed:
        (branch,) = (r for r in measured.answers if r.peer == row.peer and r.graph == job.graphs[1])
        positions, outputs = measured.answers[row].positions, measured.answers[row].outputs
        assert 0 < len(positions) < len(job.images)
        np.testing.assert_array_equal(outputs, measured.answers[branch].outputs[positions])


def test_the_document_has_a_floor_and_a_time_below_which_no_row_lies(measured: Measured, job: Job) -> None:
    found = document(measured, job, PLAN, quick=True)
    assert all(rate["gflops"] > 0 for rate in found["rates"])
    assert all(floor["floor_ms"] > 0 for floor in found["floors"])
    macs = {of: sum(work.layers.values()) + sum(work.attention.values()) for of, work in measured.work.items()}
    assert macs["dense", AS_TRAINED] > macs["complex", AS_TRAINED] > macs["simple", AS_TRAINED] > 0
    # what the deployed graphs leave out; the bundle has no controls, which would hold the dense one
    assert {graph for graph, form in macs if form == DEPLOYED} == {"complex", "simple"}
    assert all(macs[graph, DEPLOYED] < macs[graph, AS_TRAINED] for graph in ("complex", "simple"))
    own = {row["graph"] for row in found["rows"] if row["family"] == OURS and row["share_of_floor"] is not None}
    assert own == {"complex", "simple"}
    for row in (row for row in found["rows"] if row["not_measured"] is None):
        assert row["image_ms"] > row["graph_ms"] > 0 and row["n"] == 2


def test_a_bundle_of_another_checkpoint_is_not_taken_for_ours(built_both: Path) -> None:
    manifest = open_bundle(built_both).manifest
    bundle, why = bundle_of(built_both, manifest.recipe["sha256"], "0" * 64)
    assert bundle is None and "another" in why
    assert bundle_of(built_both, manifest.recipe["sha256"], manifest.checkpoint["sha256"])[0] is not None
