"""From what was measured to the one object that --json prints; its fields are documented in docs/benchmarks.md."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from athe_export.bench import machine
from athe_export.bench.protocol import Plan, Series, ratio, typical
from athe_export.bench.rows import PRECISIONS
from peers.measure import REFERENCE, Measured
from peers.ours import ENGINES, target_of
from peers.peer import DENSE, OURS, RATES, ROUTED_SIMPLE, ROUTER, Job, Row
from peers.rates import AS_TRAINED, DEPLOYED, Rates, Shape, seconds, shape_of

Json = dict[str, Any]
_SIDES = ("image", "graph")  # parts of a query that ratios are made of: pixels to answer, and the graph alone
_PEER_OF = {"litert": "LiteRT fp32", "onnx": "ONNX Runtime fp32"}  # the dense fp32 graph is the same file


def document(measured: Measured, job: Job, plan: Plan, quick: bool) -> Json:
    """The whole of a run."""
    floors, fastest = _floors(measured), fastest_dense_int8(measured)
    spread, drift = measured.fixed_work
    return {
        "graphs": list(job.graphs),
        "images": len(job.images),
        "bundle": job.said["bundle"] and job.said["bundle"].rpartition("/")[2],
        "machine": _machine(measured),
        "protocol": {
            **vars(plan), "quick": quick, "batch": 1, "threads": 1, "cpu_share": round(measured.cpu_share, 3),
            "fixed_work_p90_over_p50": round(spread, 3), "fixed_work_drift": round(drift, 3),
        },
        "fastest_dense_int8": fastest and fastest.peer,
        "rows": [_row(measured, job, row, fastest, floors) for row in measured.rows],
        "rates": _rates(measured),
        "floors": floors,
    }  # fmt: skip


def fastest_dense_int8(measured: Measured) -> Row | None:
    """The dense graph in int8 that answers first, of any peer and of our own controls."""
    found = [row for row in measured.series if (row.graph, row.precision) == (DENSE, "int8") and row.family != RATES]
    return min(found, key=lambda row: typical(measured.series[row].of_part("image")), default=None)


def own_dense(row: Row) -> list[Row]:
    """The dense rows that a row is held against, the first that was measured: of its own peer, engine and precision."""
    own = [Row(row.family, row.peer, row.precision, DENSE)]
    if row.family == OURS and row.precision == "fp32":
        family = {"litert": "litert", "onnx": "onnxruntime"}[target_of(row)]
        own.append(Row(family, _PEER_OF[target_of(row)], "fp32", DENSE))
    return own


def _row(measured: Measured, job: Job, row: Row, fastest: Row | None, floors: list[Json]) -> Json:
    series = measured.series.get(row)
    eager = Row("torch", REFERENCE, "fp32", DENSE)
    own = next((dense for dense in own_dense(row) if dense in measured.series), None)
    found: Json = {
        "family": row.family, "peer": row.peer, "precision": row.precision, "graph": row.graph,
        "n": None if series is None else len(series.seconds),
    }  # fmt: skip
    for side in _SIDES:
        found[f"{side}_ms"] = None if series is None else 1e3 * typical(series.of_part(side))
        for name, other in (("vs_torch_eager_dense", eager), ("vs_own_dense", own), ("vs_fastest_dense_int8", fastest)):
            found[f"{side}_{name}"] = _ratio(measured.series.get(other) if other else None, series, side)
    of = (row.graph, DEPLOYED if row.family == OURS else AS_TRAINED, row.precision)
    floor = next((f["floor_ms"] for f in floors if (f["graph"], f["form"], f["precision"]) == of), None)
    share = None if floor is None or found["graph_ms"] is None else floor / found["graph_ms"]
    return found | {"share_of_floor": share, **_answered(measured, job, row), "not_measured": measured.not_measured.get(row)}


def _ratio(slow: Series | None, fast: Series | None, side: str) -> Json | None:
    """How many times as fast, with its interval; None where one of them was not measured."""
    return None if slow is None or fast is None else vars(ratio(slow.of_part(side), fast.of_part(side)))


def _answered(measured: Measured, job: Job, row: Row) -> Json:
    """Agreement with torch in fp32 on the same images, of the same graph: of `routed simple` the easiest branch."""
    answers = measured.answers.get(row)
    nothing: Json = {"answered": None, "agreement": None, "top1": None}
    if answers is None or row.graph == ROUTER:
        return nothing
    graph = job.graphs[1] if row.graph == ROUTED_SIMPLE and len(job.graphs) > 1 else row.graph
    own = answers.outputs.argmax(1)
    reference = measured.answers.get(Row("torch", REFERENCE, "fp32", graph))
    same = None if reference is None else float((reference.outputs[answers.positions].argmax(1) == own).mean())
    top1 = float((job.labels[answers.positions] == own).mean())
    return {"answered": len(own), "agreement": same, "top1": top1}


def _rates(measured: Measured) -> list[Json]:
    found = []
    for row in measured.rates:
        rows, inputs, outputs = shape_of(row)
        series = measured.series.get(row)
        rate = None if series is None else 2e-9 * rows * inputs * outputs / typical(series.of_part("graph"))
        found.append(
            {"engine": row.peer.rpartition(" ")[0], "precision": row.precision, "rows": rows, "inputs": inputs,
             "outputs": outputs, "gflops": rate, "not_measured": measured.not_measured.get(row)}
        )  # fmt: skip
    return found


def _floors(measured: Measured) -> list[Json]:
    """Of every graph and form in both precisions, at the best rate of any engine for each shape; empty without rates."""
    best = _best_rates(measured)
    found = []
    for (graph, form), work in measured.work.items():
        for precision in PRECISIONS:
            layers, attention = (sum(products.values()) for products in (work.layers, work.attention))
            made = {"graph": graph, "form": form, "precision": precision, "mmacs_layers": layers / 1e6,
                    "mmacs_attention": attention / 1e6}  # fmt: skip
            rates = dict.fromkeys(("gflops_layers", "gflops_attention", "floor_ms"))
            if (precision, None) in best and ("fp32", None) in best:
                in_layers, in_attention = seconds(work.layers, precision, best), seconds(work.attention, "fp32", best)
                rates = {"gflops_layers": 2e-9 * layers / in_layers,
                         "gflops_attention": 2e-9 * attention / in_attention if attention else None,
                         "floor_ms": 1e3 * (in_layers + in_attention)}  # fmt: skip
            found.append(made | rates)
    return found


def _best_rates(measured: Measured) -> Rates:
    """Multiply-accumulates a second of the fastest engine, by precision and shape, and under None of all shapes."""
    best: dict[tuple[str, Shape | None], float] = {}
    for rate in (r for r in _rates(measured) if r["gflops"]):
        for shape in (None, (rate["rows"], rate["inputs"], rate["outputs"])):
            key = rate["precision"], shape
            best[key] = max(best.get(key, 0.0), 0.5e9 * rate["gflops"])
    return best


def _machine(measured: Measured) -> Json:
    here = machine.processor()
    return {
        "processor": here.name, "features": list(here.features), "cpus": here.cpus, "pinned_to": list(measured.pinned),
        "governor": list(machine.governors(measured.pinned)), "before": measured.before.to_json(),
        "after": measured.after.to_json(), "kernel": platform.release(), "python": platform.python_version(),
        "packages": dict(sorted(measured.packages.items())), "noisy": bool(measured.noise), "noise": list(measured.noise),
    }  # fmt: skip


def goals(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The ratios that a reader looks for first, of graphs alone and end to end; None where a row is missing."""

    def of(engine: str, precision: str, graph: str) -> Json:
        peer = f"athe-export {engine} {precision}"
        return next((r for r in found["rows"] if r["peer"] == peer and r["graph"] == graph), {})

    said: dict[str, float | None] = {}
    for engine, precision in [(engine, p) for engine in ENGINES.values() for p in ("int8", "fp32")]:
        row, system = of(engine, precision, ROUTED_SIMPLE), f"{engine} {precision}"
        for name in ("vs_own_dense", "vs_fastest_dense_int8", "vs_torch_eager_dense"):
            for side in _SIDES:
                value = row.get(f"{side}_{name}")
                said[f"{system}: routed simple {name}, {side}"] = value and value["value"]
    runtime = next((r for r in found["rows"] if (r["peer"], r["graph"]) == ("ONNX Runtime fp32", DENSE)), {})
    for side in _SIDES:
        times = [of("ONNX Runtime", p, ROUTED_SIMPLE).get(f"{side}_ms") for p in ("int8", "fp32")]
        best, dense = min((t for t in times if t), default=None), runtime.get(f"{side}_ms")
        said[f"ONNX target: routed simple vs ONNX Runtime's dense fp32, {side}"] = dense / best if best and dense else None
    for graph in found["graphs"]:
        said[f"LiteRT int8: share of the floor, {graph}"] = of("LiteRT", "int8", graph).get("share_of_floor")
    router, whole = (of("LiteRT", "int8", name).get("graph_ms") for name in (ROUTER, DENSE))
    said["LiteRT int8: router over dense, graph"] = router / whole if router and whole else None
    return {name: None if value is None else float(np.round(value, 4)) for name, value in said.items()}
