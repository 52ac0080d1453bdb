"""A bundle for both targets in both precisions, built for real: what it holds, runs and promises."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from count_instructions import subjects_of
from PIL import Image

from athe_export.bundle.reader import open_bundle
from athe_export.data.shapes import Shapes
from athe_export.runtime.engines import ENGINES
from athe_export.runtime.predictor import Predictor, open_session, preprocessing_of
from athe_export.runtime.routing import RouterPolicy, match_policy
from athe_export.targets.litert.graph import LitertGraph, pack, unpack
from tests.tools import cli, edit_arrays, edit_manifest, error_of, graph_content, refused, replace_file

GRAPHS = {
    *(("onnx", role, precision) for role in ("simple", "complex") for precision in ("int8", "fp32")),
    ("onnx", "router", "fp32"),
    *(("litert", role, precision) for role in ("router", "simple", "complex") for precision in ("int8", "fp32")),
}
SYSTEMS = {"onnx", "onnx/fp32", "litert", "litert/fp32"}


# what it holds


def test_both_targets_are_built_in_both_precisions_and_verified_graph_by_graph(built_both: Path) -> None:
    found = cli("verify", built_both, "--json")
    assert found.code == 0, found.err
    golden = found.document["golden"]
    assert {(g["target"], g["role"], g["precision"]) for g in golden} == GRAPHS and len(golden) == len(GRAPHS)
    assert all(g["passed"] and g["bit_equal"] and g["same_top1"] for g in golden)
    assert (found.document["not_run"], found.document["gate_at_build"]) == ([], "pass")


def test_instructions_are_counted_of_whole_graphs_where_a_bundle_holds_parts(built_both: Path) -> None:
    manifest = open_bundle(built_both).manifest
    assert any(graph.borrows for graph in manifest.graphs)
    sizes = {(g.target, f"{g.role} {g.precision}"): g.whole_bytes for g in manifest.graphs}
    counted = {(s.target, s.name): s.content for s in subjects_of(built_both) if s.branch is None}
    assert {key: len(content or b"") for key, content in counted.items()} == sizes
    for (target, _), content in counted.items():
        ENGINES[target](content)  # opens


def test_inspect_says_of_every_tflite_graph_what_xnnpack_takes_and_of_every_graph_what_is_int8(built_both: Path) -> None:
    graphs = cli("inspect", built_both, "--json").document["graphs"]
    assert {(g["target"], g["role"], g["precision"]) for g in graphs} == GRAPHS
    for graph in graphs:
        litert, pruned, int8 = graph["target"] == "litert", graph["role"] != "router", graph["precision"] == "int8"
        assert graph["bytes"] == (built_both / graph["file"]).stat().st_size
        assert graph["file"].endswith(".tflite" if litert else ".onnx")
        outside = ["TOPK_V2", "RESHAPE", "EMBEDDING_LOOKUP"] if pruned else []
        if litert:
            assert set(graph["xnnpack"]) == {"partitions", "outside"}
            assert graph["xnnpack"]["partitions"] == (2 if pruned else 1)
            assert [op.split()[0] for op in graph["xnnpack"]["outside"]] == outside
        else:
            assert graph["xnnpack"] is None
        assert graph["float_ops"] == len(graph["float_op_names"])
        assert (graph["int8_ops"] > 0) == int8
        if pruned and int8:  # the linear layers, the patch embedding among them, but for the scorer
            assert graph["int8_ops"] == 3 * 4 + 2
        assert (graph["float_ops"] == 0) == (not pruned and int8)


def test_every_router_has_its_frontier_on_held_out_images_with_its_own_bounds_in_use(built_both: Path) -> None:
    router = open_bundle(built_both).manifest.router
    assert router is not None
    assert set(router.frontier) == {"reference", "litert"}  # ONNX's router is the reference's in fp32
    assert router.frontier_images == {"split": "holdout", "images": 1000}
    for name, points in router.frontier.items():
        assert [p.bounds for p in points if p.chosen] == [router.bounds[name]]
        assert 2 < len(points) <= 42
        assert all(p.share[0] < q.share[0] and p.mmacs >= q.mmacs for p, q in itertools.pairwise(points))
    assert "litert, int8 router" in (built_both / "report.html").read_text()


def test_inspect_and_the_report_show_it_to_a_person(built_both: Path) -> None:
    shown = cli("inspect", built_both).out
    assert "XNNPACK, simple int8: 2 partitions, 3 ops outside: TOPK_V2" in shown
    assert "XNNPACK, router int8: 1 partition, 0 ops outside" in shown
    report = (built_both / "report.html").read_text()
    assert "XNNPACK: 2 partitions, 3 ops outside" in report and "Between targets" in report
    for text in (shown, report):
        assert all(f"routed {p}" in text for p in ("int8", "fp32")) and "router int8" in text and "router fp32" in text


def test_an_int8_graph_is_smaller_than_its_fp32_graph(built_both: Path) -> None:
    sizes = {(g.target, g.role, g.precision): g.whole_bytes for g in open_bundle(built_both).manifest.graphs}
    for target, role, _ in (graph for graph in GRAPHS if graph[2] == "int8"):
        assert sizes[target, role, "int8"] < sizes[target, role, "fp32"]


# what it runs


@pytest.mark.parametrize(
    ("options", "target"),
    [([], "litert"), (["--target", "auto"], "litert"), (["--target", "litert"], "litert"), (["--target", "onnx"], "onnx")],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
@pytest.mark.parametrize("precision", ["auto", "int8", "fp32"])
def test_run_takes_litert_where_both_are_there_and_else_what_it_is_told(
    built_both: Path, photo: Path, options: list[str], target: str, precision: str
) -> None:
    found = cli("run", built_both, photo, *options, "--precision", precision, "--json")
    assert found.code == 0, found.err
    assert (found.document["target"], found.document["not_run"]) == (target, [])
    bundle = open_bundle(built_both)
    wanted = "int8" if precision == "auto" else precision
    result = found.document["results"][0]
    (entry,) = (g for g in bundle.manifest.graphs if (g.target, g.role, g.precision) == (target, result["branch"], wanted))
    preprocessing = preprocessing_of(bundle.manifest)
    source = preprocessing.source(np.asarray(Image.open(photo)))
    logits = open_session(bundle, entry).run(preprocessing.resized(source, 32)[None]).ravel()
    assert result["label"] == Shapes().class_names[int(logits.argmax())]


def test_run_names_the_target_to_a_person(built_both: Path, photo: Path) -> None:
    assert "target litert" in cli("run", built_both, photo).out
    assert "target onnx" in cli("run", built_both, photo, "--target", "onnx").out


@pytest.mark.parametrize("target", ["onnx", "litert"])
def test_threads_change_nothing_of_the_answer(built_both: Path, photo: Path, target: str) -> None:
    one, three = (cli("run", built_both, photo, "--target", target, "--threads", n, "--json") for n in (1, 3))
    assert (one.code, three.code) == (0, 0)
    (first,), (second,) = one.document["results"], three.document["results"]
    assert (first["label"], first["branch"]) == (second["label"], second["branch"])
    assert first["probability"] == pytest.approx(second["probability"], abs=1e-5)


def test_an_int8_router_is_held_against_bounds_of_its_own_and_an_fp32_router_against_the_references(
    built_both: Path,
) -> None:
    manifest = open_bundle(built_both).manifest
    assert manifest.router is not None and manifest.router.bounds.keys() == {"reference", "onnx", "litert"}
    for target, precision, key in (
        ("litert", "int8", "litert"),
        ("litert", "fp32", "reference"),
        ("onnx", "int8", "reference"),  # its router is there in fp32 alone
        ("onnx", "fp32", "reference"),
    ):
        predictor = Predictor.load(built_both, target, precision)
        policy = RouterPolicy(manifest.router.bounds[key])
        for index in range(30):
            found = predictor.predict(Shapes().image("test", index))
            assert found.router_score is not None
            assert found.branch == predictor.graphs.branches[policy.branch_of(found.router_score)]


def test_the_int8_routers_bounds_are_matched_to_what_the_reference_did_with_the_calibration_images(
    built_both: Path,
) -> None:
    manifest = open_bundle(built_both).manifest
    assert manifest.router is not None
    ids = yaml.safe_load((built_both.parent / "calibration.yaml").read_text())["ids"]
    int8, fp32 = (Predictor.load(built_both, "litert", precision).graphs.session("router") for precision in ("int8", "fp32"))
    preprocessing, shapes = preprocessing_of(manifest), Shapes()
    images = [preprocessing.source(shapes.image("train", i))[None] for i in ids]
    coarse, exact = (np.array([s.run(image)[0] for image in images], np.float32) for s in (int8, fp32))
    reference = RouterPolicy(manifest.router.bounds["reference"]).branches_of(exact)
    expected = match_policy(coarse, reference, 2)
    assert manifest.router.bounds["litert"] == pytest.approx(expected.bounds, abs=1e-6)
    assert manifest.router.bounds["litert"] != manifest.router.bounds["reference"]
    assert manifest.router.bounds["onnx"] == manifest.router.bounds["reference"]
    matched = RouterPolicy(manifest.router.bounds["litert"]).branches_of(coarse)
    plain = RouterPolicy(manifest.router.bounds["reference"]).branches_of(coarse)
    assert (matched == reference).mean() >= (plain == reference).mean()


def test_both_targets_route_and_answer_nearly_alike_in_fp32(built_both: Path) -> None:
    one, other = (Predictor.load(built_both, target, "fp32") for target in ("litert", "onnx"))
    for index in range(30):
        first, second = one.predict(Shapes().image("test", index)), other.predict(Shapes().image("test", index))
        assert first.router_score == pytest.approx(second.router_score, abs=1e-4)
        assert (first.branch, first.label) == (second.branch, second.label)


# what it promises


def _without_torch(parity: dict[str, Any] | None) -> dict[str, Any]:
    """A gate's outcome but for what only a build can measure: torch's unrounded logits, and the tokens that it keeps."""
    assert parity is not None
    found = copy.deepcopy(parity)
    found["hops"] = [hop for hop in found["hops"] if hop["from"] != "torch fp32"]
    for hop in found["hops"]:
        del hop["token_overlap"]
        hop.pop("token_overlap_not_measured", None)
        hop.pop("token_images", None)
    for target in found["targets"].values():
        del target["attribution"]
    return found


def test_every_system_is_gated_and_the_targets_are_compared(built_both: Path, data: Path) -> None:
    found = cli("verify", built_both, "--data-root", data, "--json")
    assert found.code == 0, found.err
    parity = found.document["parity"]
    assert _without_torch(parity) == _without_torch(open_bundle(built_both).manifest.parity)
    assert set(parity["targets"]) == SYSTEMS
    kinds = ("max_top1_drop_pp", "min_agreement", "min_router_agreement")
    assert {f"{s}.{kind}" for s in SYSTEMS for kind in kinds} <= {limit["name"] for limit in parity["limits"]}
    for name in ("onnx/fp32", "litert/fp32"):
        exact = parity["targets"][name]
        assert (exact["agreement"], exact["router_agreement"], exact["drop_pp"]) == (1, 1, 0)
        assert exact["max_logit_difference"] < 2e-3  # the reference is stored in half precision
    for name in ("onnx", "litert"):
        assert parity["targets"][name]["max_logit_difference"] > parity["targets"]["litert/fp32"]["max_logit_difference"]
    assert {pair["precision"] for pair in parity["between"]} == {"int8", "fp32"} and len(parity["between"]) == 2
    for pair in parity["between"]:
        assert set(pair["targets"]) == {"onnx", "litert"}
        assert 0 < pair["agreement"] <= 1 and 0 < pair["router_agreement"] <= 1
        assert 0 < pair["max_logit_difference"] < (1 if pair["precision"] == "int8" else 1e-3)


def test_the_comparison_of_targets_is_said(built_both: Path, data: Path) -> None:
    said = cli("verify", built_both, "--data-root", data).out
    pairs = open_bundle(built_both).manifest.parity["between"]  # type: ignore[index]
    assert len(pairs) == 2
    for pair in pairs:
        same = f"{100 * pair['agreement']:.1f}% same answers"
        assert f"onnx and litert {pair['precision']}: {same}, logits differ by" in said


def _shift_classes(content: bytes) -> bytes:
    """A real int8 graph that answers each class as the next one: the rows of its last layer, moved by one."""
    model = unpack(content)
    head = next(i for i, op in enumerate(LitertGraph("complex", "int8", content).ops) if op.name == "head")
    for operand, kind in ((1, np.int8), (2, np.int32)):
        tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[head].inputs[operand]]
        rows = np.array(model.buffers[tensor.buffer].data, np.uint8).view(kind).reshape(100, -1)
        model.buffers[tensor.buffer].data = np.ascontiguousarray(np.roll(rows, 1, 0)).view(np.uint8).ravel()
        tensor.quantization.scale = np.roll(tensor.quantization.scale, 1)
    return pack(model)


def test_a_broken_tflite_graph_fails_the_gate_however_well_onnx_does(bundle_both: Path, data: Path) -> None:
    name = "litert/complex.int8.tflite"
    replace_file(bundle_both, name, _shift_classes(graph_content(bundle_both, name)))
    key = "litert/complex/int8"
    edit_arrays(bundle_both, "golden.npz", lambda a: a.update({key: np.roll(a[key], 1, axis=1)}))
    found = cli("verify", bundle_both, "--data-root", data, "--json")
    error_of(found, 3, "gate_failed")
    assert all(g["passed"] for g in found.document["golden"]), "the gate was not what failed"
    broken = {limit["name"] for limit in found.document["parity"]["limits"] if limit["verdict"] == "fail"}
    assert "litert.complex.min_sqnr_db" in broken  # its answers are too few to be surely outside their limit
    assert all(name.startswith("litert.") for name in broken)
    assert "litert.complex.min_sqnr_db" in found.document["error"]["message"]


def test_wrong_bounds_of_one_target_fail_the_gate_for_that_target_alone(bundle_both: Path, data: Path) -> None:
    edit_manifest(bundle_both, lambda m: m["router"]["bounds"].update(litert=[1.0]))
    found = cli("verify", bundle_both, "--data-root", data, "--json")
    assert found.code == 3
    verdicts = {limit["name"]: limit["verdict"] for limit in found.document["parity"]["limits"]}
    assert verdicts["litert.min_router_agreement"] == "fail"
    others = SYSTEMS - {"litert"}  # the fp32 router of the same target keeps the reference's bounds
    assert all(verdicts[f"{s}.min_router_agreement"] == "pass" for s in others)


def test_a_changed_tflite_output_fails_the_self_test_and_is_named(bundle_both: Path) -> None:
    key = "litert/simple/fp32"
    edit_arrays(bundle_both, "golden.npz", lambda a: a.update({key: a[key] + 1}))
    message = error_of(cli("verify", bundle_both, "--json"), 3, "gate_failed")["message"]
    assert "litert simple fp32 differs" in message and "onnx" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda c: c[: len(c) // 2], "cannot load the graph"),
        (lambda c: b"no graph", "cannot load the graph"),
        (lambda c: b"", "cannot load the graph"),
    ],
    ids=["truncated", "text", "empty"],
)
def test_a_tflite_file_that_is_none_is_refused_by_verify_and_run(
    bundle_both: Path, photo: Path, content: Callable[[bytes], bytes], said: str
) -> None:
    name = "litert/complex.int8.tflite"
    replace_file(bundle_both, name, content(graph_content(bundle_both, name)))
    for verb in (["verify", bundle_both], ["run", bundle_both, photo, "--branch", "complex"]):
        error = refused(5, "bundle_integrity", *verb)
        assert said in error["message"] and error["where"] == str(bundle_both / name)


def test_a_damaged_tflite_file_is_listed_before_it_is_opened(bundle_both: Path) -> None:
    path = bundle_both / "litert/router.int8.tflite"
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(5, "bundle_integrity", "verify", bundle_both)["files"] == [
        {"path": "litert/router.int8.tflite", "problem": "changed"}
    ]


# recipes of one target


def test_a_bundle_for_litert_alone_is_built_in_silence(litert_only: tuple[Path, Any]) -> None:
    path, built = litert_only
    assert built.code == 0, built.err
    said = [line for line in built.err.splitlines() if not line.startswith(" ")]
    assert said == [s["name"] for s in built.document["stages"]], "something beside the stages was written to stderr"
    assert built.document["verdict"] == open_bundle(path).manifest.verdict == "not_gated"


def test_a_dry_run_lists_the_stages_that_the_build_then_had(litert_only: tuple[Path, Any]) -> None:
    path, built = litert_only
    plan = cli("build", path.parent / "recipe.yaml", "-o", path, "--dry-run", "--json")
    assert plan.document["stages"] == [s["name"] for s in built.document["stages"]]
    assert plan.document["targets"] == {"litert": {"precisions": ["int8", "fp32"], "scheme": "static_wi8_ai8"}}


@pytest.mark.parametrize(
    ("keep_float", "quantized"),
    [([], True), (["router.*"], False), (["*"], False), (["router.classifier"], True), (["router.features.*"], True),
     (["router.features.*", "router.classifier"], False), (["blocks.*"], True)],
)  # fmt: skip
def test_a_dry_run_knows_whether_the_router_will_be_quantized(
    tiny: Callable[..., Path], keep_float: list[str], quantized: bool
) -> None:
    targets = {"onnx": {}, "litert": {"quantize": {"keep_float": keep_float}}}
    stages = cli("build", tiny(targets=targets), "--dry-run", "--json").document["stages"]
    assert ("litert: quantize router" in stages) == quantized
    assert "litert: export router" in stages and "onnx: quantize router" not in stages


def test_a_router_that_is_kept_float_is_there_once_and_serves_both_precisions(litert_only: tuple[Path, Any]) -> None:
    path, _ = litert_only
    manifest = open_bundle(path).manifest
    assert {(g.target, g.role, g.precision) for g in manifest.graphs} == {
        ("litert", "router", "fp32"),
        *(("litert", role, precision) for role in ("simple", "complex") for precision in ("int8", "fp32")),
    }
    assert manifest.router is not None and manifest.router.bounds["litert"] == manifest.router.bounds["reference"]
    for precision in ("int8", "fp32"):
        assert Predictor.load(path, precision=precision).predict(Shapes().image("test", 0)).router_score is not None


def test_a_branch_that_prunes_nothing_is_one_partition(litert_only: tuple[Path, Any]) -> None:
    for graph in open_bundle(litert_only[0]).manifest.graphs:
        assert graph.xnnpack == {"partitions": 1, "outside": []}


def test_a_bundle_for_litert_alone_verifies_and_has_no_onnx(litert_only: tuple[Path, Any], photo: Path) -> None:
    found = cli("verify", litert_only[0], "--json")
    assert found.code == 0 and {g["target"] for g in found.document["golden"]} == {"litert"}
    error = refused(2, "usage", "run", litert_only[0], photo, "--target", "onnx")
    assert "no target 'onnx'" in error["message"] and "litert" in error["remedy"]


def test_hops_lead_from_torch_to_both_targets_and_from_one_to_the_other(built_both: Path) -> None:
    parity = open_bundle(built_both).manifest.parity
    assert parity is not None
    routed = [h for h in parity["hops"] if h["path"] == "routed"]
    assert [(h["from"], h["to"]) for h in routed] == [
        ("torch fp32", "onnx fp32"), ("torch fp32", "litert fp32"), ("onnx fp32", "onnx int8"),
        ("litert fp32", "litert int8"), ("onnx fp32", "litert fp32"), ("onnx int8", "litert int8"),
    ]  # fmt: skip
    for hop in (h for h in parity["hops"] if h["to"].endswith("fp32")):  # of an export nothing may be lost
        assert hop["agreement"] == 1 and hop["logit_cosine"] == pytest.approx(1, abs=1e-6)
        assert hop["token_overlap"] == 1 or hop["path"] == "routed"
    assert all(h["token_overlap"] is not None for h in parity["hops"] if h["path"] != "routed")
