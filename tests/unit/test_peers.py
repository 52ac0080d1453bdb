"""scripts/peers: what is made of a run, and what a worker says; the tools themselves are in the integration tests."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import openvino_peers
from peers.document import document, goals, own_dense
from peers.measure import REFERENCE, Answers, Measured
from peers.ours import own_rows
from peers.peer import DENSE, FAMILIES, OURS, RATES, Job, Peer, Row, peer_rows, peers_of
from peers.processes import WorkerProcess
from peers.rates import AS_TRAINED, DEPLOYED, Work, products_of, rate_rows, seconds, shape_of
from peers.tables import drawing, lines, markdown, row_cells
from peers.worker import serve

from athe_export.bench.machine import Moment
from athe_export.bench.protocol import Plan, Series
from tests.conftest import ROOT

GRAPHS = (DENSE, "simple")
QUIET = Moment(None, None, None, None)
EAGER = Row("torch", REFERENCE, "fp32", DENSE)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job's folder with four images and no graph."""
    preprocessing = {"source_size": 8, "resize": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    said = {"graphs": GRAPHS, "image_size": 8, "preprocessing": preprocessing, "routed": True, "bundle": None}
    (tmp_path / "job.json").write_text(json.dumps(said | {"no_bundle": "there is no bundle"}))
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.array([0, 1, 0, 1]))
    return Job(tmp_path)


def series(milliseconds: float) -> Series:
    """Six rounds of one query; a quarter of the time is resizing."""
    seconds = np.full(6, milliseconds / 1e3)
    parts = {"image": seconds, "graph": 0.75 * seconds, "cpu": seconds}
    return Series(seconds, np.arange(6), np.full(6, ""), parts)


def answers(*labels: int) -> Answers:
    return Answers(np.arange(len(labels)), np.eye(2, dtype=np.float32)[list(labels)])


def measured(times: dict[Row, float], given: dict[Row, Answers] | None = None) -> Measured:
    """A run in which these rows took so many milliseconds, and nothing else was measured."""
    rows = (*peer_rows(FAMILIES, GRAPHS), *own_rows(GRAPHS, routed=True))
    works = {
        (DENSE, AS_TRAINED): Work({(4, 8, 16): 512_000}, {(4, 4, 4): 100_000}),
        (DENSE, DEPLOYED): Work({(4, 8, 16): 256_000}, {(4, 4, 4): 50_000}),
        ("simple", AS_TRAINED): Work({(2, 8, 16): 256_000}, {(2, 4, 2): 50_000}),
    }
    rates = tuple(rate_rows(products_of(works.values())))
    missing = {row: "not installed: it" for row in (*rows, *rates) if row not in times}
    return Measured(
        rows, rates, {row: series(ms) for row, ms in times.items()}, given or {}, missing, works, {"torch": "2"}, (0,),
        QUIET, QUIET, 1.0, (1.0, 0.0),
    )  # fmt: skip


def found(job: Job, times: dict[Row, float], given: dict[Row, Answers] | None = None) -> dict[str, Any]:
    made = document(measured(times, given), job, Plan(), quick=True)
    return made | {"goals": goals(made)}


def of(document: dict[str, Any], row: Row) -> dict[str, Any]:
    rows = document["rows"]
    return next(r for r in rows if (r["peer"], r["precision"], r["graph"]) == (row.peer, row.precision, row.graph))


def test_every_peer_that_the_page_promises_has_a_row_for_every_graph() -> None:
    names = {peer.name for family in FAMILIES for peer in peers_of(family)}
    rows = peer_rows(FAMILIES, GRAPHS)
    assert {(row.peer, row.graph) for row in rows} == {(name, graph) for name in names for graph in GRAPHS}
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert all(f"| `{family}` |" in page for family in (*FAMILIES, OURS))


def test_what_was_not_measured_is_said_by_name_with_its_reason(job: Job) -> None:
    document = found(job, {EAGER: 10.0})
    said = "\n".join(lines(document, document["goals"]))
    rows = document["rows"]
    for row in rows:
        assert (row["not_measured"] is None) == (row["peer"] == REFERENCE and row["graph"] == DENSE)
        assert (row["image_ms"] is None) == (row["not_measured"] is not None)
        if row["not_measured"] is not None:
            assert f"not measured: {row['peer']} (" in said
    assert row_cells(document) != [] and len(row_cells(document)) == 1


def test_ratios_say_how_many_times_as_fast_the_row_is(job: Job) -> None:
    int8, branch = (
        Row("litert", "LiteRT int8 dynamic", "int8", DENSE),
        Row("litert", "LiteRT int8 dynamic", "int8", "simple"),
    )
    slower = Row("onnxruntime", "ONNX Runtime int8 dynamic, defaults", "int8", DENSE)
    document = found(job, {EAGER: 12.0, int8: 4.0, branch: 2.0, slower: 6.0})
    row = of(document, branch)
    assert document["fastest_dense_int8"] == int8.peer
    for name, value in (("vs_torch_eager_dense", 6.0), ("vs_own_dense", 2.0), ("vs_fastest_dense_int8", 2.0)):
        assert row[f"image_{name}"]["value"] == pytest.approx(value)
        assert row[f"graph_{name}"]["value"] == pytest.approx(value)
    assert row["image_ms"] == pytest.approx(2.0) and row["graph_ms"] == pytest.approx(1.5)


def test_our_fp32_rows_take_the_engines_dense_graph_where_there_are_no_controls(job: Job) -> None:
    ours = Row(OURS, "athe-export LiteRT fp32", "fp32", "routed simple")
    document = found(job, {ours: 2.0, Row("litert", "LiteRT fp32", "fp32", DENSE): 7.0})
    assert of(document, ours)["image_vs_own_dense"]["value"] == pytest.approx(3.5)
    int8 = Row(OURS, "athe-export LiteRT int8", "int8", "routed simple")
    assert own_dense(int8) == [Row(OURS, int8.peer, "int8", DENSE)]  # no other tool quantizes as we do


def test_agreement_is_with_torch_on_the_same_graph_and_the_images_that_were_asked(job: Job) -> None:
    peer, simple = Row("litert", "LiteRT fp32", "fp32", "simple"), Row("torch", REFERENCE, "fp32", "simple")
    routed = Row(OURS, "athe-export LiteRT int8", "int8", "routed simple")
    some = Answers(np.array([1, 3]), np.eye(2, dtype=np.float32)[[1, 0]])
    given = {EAGER: answers(0, 0, 0, 0), simple: answers(0, 1, 1, 1), peer: answers(0, 1, 1, 0), routed: some}
    document = found(job, dict.fromkeys(given, 1.0), given)
    assert (of(document, peer)["agreement"], of(document, peer)["top1"]) == (0.75, 0.5)
    assert (of(document, routed)["agreement"], of(document, routed)["top1"], of(document, routed)["answered"]) == (
        0.5,
        0.5,
        2,
    )
    assert of(document, EAGER)["agreement"] == 1.0


def test_a_layer_of_a_shape_that_was_not_measured_goes_at_the_best_rate_of_all() -> None:
    rates = {("int8", None): 200.0, ("int8", (4, 8, 16)): 100.0}
    assert seconds({(4, 8, 16): 600, (1, 8, 2): 400}, "int8", rates) == 600 / 100 + 400 / 200


def test_a_floor_is_the_time_of_the_multiplications_at_the_best_rates_of_their_shapes(job: Job) -> None:
    int8, slower = rate_rows([("int8", (4, 8, 16))])
    other, _ = rate_rows([("int8", (2, 8, 16))])  # faster, of another shape
    heads, _ = rate_rows([("fp32", (4, 4, 4))])
    row, ours = Row("litert", "LiteRT int8 dynamic", "int8", DENSE), Row(OURS, "athe-export LiteRT int8", "int8", DENSE)
    times = {EAGER: 1.0, row: 40.0, ours: 40.0, int8: 1e-2, slower: 2e-2, other: 1e-3, heads: 4e-2}
    document = found(job, times)
    floor = next(f for f in document["floors"] if (f["graph"], f["precision"]) == (DENSE, "int8"))
    # a layer's product takes 7.5 microseconds of graph, one of a head 30
    expected = 512_000 / (4 * 8 * 16 / 7.5e-3) + 100_000 / (4 * 4 * 4 / 30e-3)
    assert floor["floor_ms"] == pytest.approx(expected)
    assert of(document, row)["share_of_floor"] == pytest.approx(expected / 30.0)
    assert of(document, ours)["share_of_floor"] == pytest.approx(expected / 60.0)  # its graph has half of the products
    assert shape_of(int8) == (4, 8, 16)


def test_a_graph_without_attention_has_a_floor_of_its_layers_alone(job: Job) -> None:
    products = rate_rows([("int8", (4, 8, 16)), ("fp32", (4, 8, 16))])
    run = measured(dict.fromkeys(products, 1e-2))
    run = dataclasses.replace(run, work={(DENSE, AS_TRAINED): Work({(4, 8, 16): 512_000}, {})})
    for floor in document(run, job, Plan(), quick=True)["floors"]:
        assert floor["gflops_attention"] is None and floor["floor_ms"] == pytest.approx(7.5e-3 * 1000)


def test_no_floor_is_told_without_both_rates(job: Job) -> None:
    document = found(job, {EAGER: 1.0})
    floors = document["floors"]
    assert all(f["floor_ms"] is None for f in floors)
    assert of(document, EAGER)["share_of_floor"] is None


def test_every_field_of_the_json_is_documented(job: Job) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    document = found(job, {EAGER: 1.0})
    lists = [document[name] for name in ("rows", "rates", "floors")]
    for name in (*document, *(key for found in lists for key in found[0])):
        assert f"`{name}`" in page, name


def test_the_page_gets_a_table_and_a_drawing_of_what_was_measured_alone(job: Job) -> None:
    ours = Row(OURS, "athe-export LiteRT int8", "int8", "routed simple")
    document = found(job, {EAGER: 12.0, ours: 1.0})
    text = markdown(document, document["goals"], "python scripts/bench_peers.py R")
    assert "python scripts/bench_peers.py R" in text
    assert "| athe-export LiteRT int8 | routed simple | 12.00× |" in text
    assert "- not measured: OpenVINO f32 (dense, simple): not installed: it" in text
    assert drawing(document).count("<rect") == 3  # the ground and two bars


def test_a_package_that_is_not_there_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer("absent", "fp32", ("numpy", "no_such_package_here"), lambda job, graph: pytest.fail("was opened"))
    monkeypatch.setattr(openvino_peers, "PEERS", (absent,))
    said = io.StringIO()
    serve(job, io.StringIO(json.dumps({"do": "open", "row": ["openvino", "absent", "fp32", DENSE]}) + "\n"), said)
    assert json.loads(said.getvalue()) == {"why": "not installed: no_such_package_here"}


def test_whatever_a_package_raises_is_the_reason(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Job, graph: str) -> object:
        raise RuntimeError(f"op TopK of {graph} is not supported\nby this package")

    monkeypatch.setattr(openvino_peers, "PEERS", (Peer("refuses", "fp32", (), refuse),))
    said = io.StringIO()
    serve(job, io.StringIO(json.dumps({"do": "open", "row": ["openvino", "refuses", "fp32", DENSE]}) + "\n"), said)
    assert json.loads(said.getvalue()) == {"why": "RuntimeError: op TopK of dense is not supported"}


def test_a_worker_that_dies_is_a_reason_and_not_the_end(job: Job) -> None:
    worker = WorkerProcess("openvino", job, "/bin/false")
    try:
        assert worker.open(Row("openvino", "OpenVINO f32", "fp32", DENSE)) == "its process ended with code 1"
        assert worker.open(Row("openvino", "OpenVINO f32", "fp32", "simple")) == "its process ended with code 1"
    finally:
        worker.close()


def test_rates_are_of_both_engines_in_the_heaviest_shapes_and_of_attention_in_float_alone() -> None:
    works = [Work({(4, 8, 16): 512, (1, 8, 2): 16}, {(4, 4, 4): 3}), Work({(4, 8, 16): 512, (2, 8, 16): 600}, {})]
    products = products_of(works)
    layers = [(4, 8, 16), (2, 8, 16), (1, 8, 2)]
    assert products == [*((p, s) for s in layers for p in ("fp32", "int8")), ("fp32", (4, 4, 4))]
    rows = rate_rows(products[:2])
    assert [(row.family, row.peer) for row in rows] == [
        (RATES, f"{engine} {precision}") for precision in ("fp32", "int8") for engine in ("LiteRT", "ONNX Runtime")
    ]
