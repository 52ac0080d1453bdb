"""From times to ratios and verdicts, on series that were written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from athe_export.bench.protocol import UNSPLIT, Series
from athe_export.bench.report import (
    Measured,
    Table,
    limits_json,
    ratios_json,
    row_json,
    verdict_of,
)
from athe_export.bench.rows import Key, Row, accuracy_of, keys_of, mix_of, mixed
from athe_export.bench.run import limit_said
from athe_export.bench.table import row_cells
from athe_export.bundle.manifest import Manifest, RouterEntry
from tests.tools import plain_manifest

LIMITS = {"min_speedup_simple": 3.0, "int8_not_slower_than_fp32": True}


def _key(kind: str, precision: str = "int8", name: str = "") -> Key:
    return Key("litert", precision, kind, name or kind)


def _row(seconds: float, noise: float = 0.0, router: float = 0.0) -> Measured:
    generator = np.random.default_rng(int(1e6 * seconds))
    times = seconds * np.exp(noise * generator.standard_normal(50))
    parts = {"decode": times * 0, "resize": times * 0, "router": times * router, "branch": times * (1 - router)}
    series = Series(times, np.arange(50), np.array([""] * 50), parts)
    return Measured(Row(lambda: UNSPLIT, None, 0.5, 1000, 900), series)


def _table(noise: float = 0.0, **seconds: float) -> Table:
    """Rows named `kind_precision`, for example routed_simple_int8=0.004."""
    rows = {}
    for name, value in seconds.items():
        kind, _, precision = name.rpartition("_")
        rows[_key(kind, precision)] = _row(value, noise, router=1.0 if kind == "router" else 0.0)
    every = [_key(k, p) for k in ("router", "routed", "routed_simple", "dense") for p in ("int8", "fp32")]
    return Table(rows, {key: "there are no controls" for key in every if key not in rows}, 1)


WHOLE = {
    "router_int8": 0.0001,
    "routed_simple_int8": 0.004,
    "routed_int8": 0.006,
    "dense_int8": 0.012,
    "routed_simple_fp32": 0.010,
    "routed_fp32": 0.015,
    "dense_fp32": 0.030,
}


def test_the_two_factors_of_a_speedup_multiply_to_it() -> None:
    row = row_json(_table(**WHOLE), _key("routed_simple"))
    assert row["vs_dense_same_precision"]["value"] == 3.0
    assert row["vs_dense_fp32"]["value"] == 7.5
    assert (row["pruning"]["value"], row["quantization"]["value"]) == (3.0, 2.5)


def test_the_three_ratios_are_of_the_routed_whole_and_the_router_stands_beside_the_dense_control() -> None:
    found = ratios_json(_table(**WHOLE), "litert", "int8", routed=True)
    names = ("routed_simple_vs_dense_same_precision", "routed_simple_vs_dense_fp32", "int8_vs_fp32")
    assert [found[n] for n in names] == [3.0, 7.5, 2.5]
    assert found["router_share_of_dense"] == pytest.approx(0.0001 / 0.012, rel=1e-3)
    assert set(found["intervals"]) == {*names, "router_share_of_dense"}


def test_without_controls_their_rows_are_null_and_say_why() -> None:
    table = _table(routed_simple_int8=0.004)
    row, dense = row_json(table, _key("routed_simple")), row_json(table, _key("dense"))
    assert row["p50_ms"] == 4.0 and row["vs_dense_fp32"] is None and row["not_measured"] is None
    assert set(dense) == set(row) and dense["n"] == 0 and dense["not_measured"] == "there are no controls"
    assert {k for k, v in dense.items() if v is not None} == {
        "system",
        "kind",
        "target",
        "precision",
        "threads",
        "n",
        "not_measured",
    }
    found = ratios_json(table, "litert", "int8", routed=True)
    assert found["routed_simple_vs_dense_same_precision"] is None and found["int8_vs_fp32"] is None


def _verdicts(table: Table, limits: dict[str, Any] | None = None) -> dict[str, str]:
    found = limits_json(table, limits or LIMITS, {"litert": "int8"}, routed=True)
    return {limit["name"]: limit["verdict"] for limit in found}


def test_a_limit_passes_fails_or_stays_open_by_the_whole_interval() -> None:
    faster = _table(0.02, **WHOLE | {"routed_simple_int8": 0.003})
    assert _verdicts(faster) == {"litert.min_speedup_simple": "pass", "litert.int8_not_slower_than_fp32": "pass"}
    slower = _table(0.02, **WHOLE | {"routed_simple_int8": 0.008, "routed_int8": 0.030})
    assert set(_verdicts(slower).values()) == {"fail"}
    close = _table(0.3, **WHOLE)
    assert _verdicts(close)["litert.min_speedup_simple"] == "inconclusive"


def test_a_limit_on_what_was_not_measured_is_never_passed() -> None:
    found = limits_json(_table(routed_simple_int8=0.004), LIMITS, {"litert": "int8"}, routed=True)
    assert {limit["verdict"] for limit in found} == {"inconclusive"}
    assert all("there are no controls" in limit_said(limit) for limit in found)


def test_no_limit_is_held_that_the_recipe_does_not_set() -> None:
    table = _table(**WHOLE)
    for limits in (None, {}, {"min_speedup_simple": None, "int8_not_slower_than_fp32": False}):
        found = limits_json(table, limits, {"litert": "int8"}, routed=True)
        assert found == [] and verdict_of(found) is None


def test_fail_outranks_inconclusive_outranks_pass() -> None:
    def of(*verdicts: str) -> str | None:
        return verdict_of([{"verdict": v} for v in verdicts])

    assert of("pass", "inconclusive", "fail") == "fail"
    assert of("pass", "inconclusive") == "inconclusive" and of("pass", "pass") == "pass"


@pytest.mark.parametrize(("noisy", "shown"), [(False, "3.00×"), (True, "3.0×")])
def test_a_noisy_run_gives_ratios_to_one_decimal(noisy: bool, shown: str) -> None:
    document = {"machine": {"noisy": noisy}, "rows": [row_json(_table(**WHOLE), _key("routed_simple"))]}
    assert row_cells(document)[0][6] == shown


# --- rows -------------------------------------------------------------------------------------------------------------


def _routed(parity: dict[str, Any] | None) -> Manifest:
    plain = plain_manifest()
    branches = tuple(plain.branches[0]._replace(name=n, calibration_images=i) for n, i in (("easy", 30), ("hard", 10)))
    graphs = tuple(plain.graphs[0]._replace(role=n) for n in ("easy", "hard"))
    router = RouterEntry("mobilenet_v1_0.25", 32, {"reference": (0.5,), "onnx": (0.5,)})
    return plain._replace(branches=branches, graphs=graphs, router=router, parity=parity)


GATED = {
    "reference": {"top1": 0.9},
    "targets": {
        "onnx": {
            "top1": 0.8,
            "share": {"easy": 0.25, "hard": 0.75},
            "branches": {"easy": {"top1": 0.7}, "hard": {"top1": None}},
        }
    },
    "hops": [
        {"to": "onnx fp32", "path": "routed", "top1_after": 0.85},
        {"to": "onnx fp32", "path": "easy", "top1_after": 0.75},
    ],
}


def test_the_mix_is_the_one_that_the_gate_has_found_and_else_that_of_calibration() -> None:
    assert mix_of(_routed(GATED), "onnx", "int8") == mix_of(_routed(GATED), "onnx", "fp32") == {"easy": 0.25, "hard": 0.75}
    assert mix_of(_routed(None), "onnx", "int8") == {"easy": 0.75, "hard": 0.25}


def test_images_of_a_mix_stand_by_their_shares_and_a_rare_branch_has_one_at_least() -> None:
    photos = {"easy": [b"e1", b"e2"], "hard": [b"h"]}
    drawn = mixed(photos, {"easy": 0.75, "hard": 0.25})
    assert drawn.count(b"h") == 16 and drawn.count(b"e1") == drawn.count(b"e2") == 24
    assert mixed(photos, {"easy": 0.999, "hard": 0.001}).count(b"h") == 1
    assert mixed(photos, {"easy": 1.0, "hard": 0.0}).count(b"h") == 0


def test_accuracy_is_the_gates_of_the_same_row_and_null_where_it_measured_none() -> None:
    def of(manifest: Manifest, precision: str, kind: str, name: str) -> float | None:
        return accuracy_of(manifest, Key("onnx", precision, kind, name))

    m = _routed(GATED)
    assert of(m, "int8", "routed", "routed") == 0.8
    assert of(m, "int8", "routed_simple", "routed_simple") == of(m, "int8", "branch", "easy") == 0.7
    assert of(m, "fp32", "routed", "routed") == 0.85 and of(m, "fp32", "branch", "easy") == 0.75
    assert of(m, "int8", "branch", "hard") is of(m, "fp32", "branch", "hard") is of(m, "int8", "router", "router") is None
    assert of(_routed(None), "int8", "routed", "routed") is None


def test_a_single_branch_is_measured_without_routed_rows() -> None:
    kinds = [(k.kind, k.precision) for k in keys_of(plain_manifest(), "onnx")]
    assert kinds == [("branch", "int8"), ("dense", "int8"), ("branch", "fp32"), ("dense", "fp32")]
