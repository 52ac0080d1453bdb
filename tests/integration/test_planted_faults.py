"""Faults planted into a real build of the shipped quickstart weights: the gate catches each and names where it is.

One build on a few hundred images. Beside its own gate it runs one for each fault, on a copy of the staged bundle.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from athe_export import pipeline
from athe_export.build_gate import ExportedGraphs, gate_staged
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.data.source import Progress, no_progress
from athe_export.errors import BundleIntegrityError, GateFailed
from athe_export.parity.gate import ParityReport
from athe_export.parity.limits import FAIL, INCONCLUSIVE
from athe_export.recipe import OnnxQuantizeSpec, load_recipe
from athe_export.reference import TracedReference
from athe_export.runtime.golden import check_golden
from athe_export.system import Prepared
from athe_export.targets.onnx.graph import OnnxGraph, count_mmacs
from athe_export.targets.onnx.quantize import quantize
from athe_export.verify import check_preprocessing
from tests.conftest import ROOT, SilentWatch
from tests.tools import edit_manifest, graph_content, replace_file

IMAGES = 300
LAYER = "blocks.2.mlp.fc2"


def corrupt_scale(bundle: Path) -> None:
    """One layer's weights are read eight times too large, in branch simple."""
    path = "onnx/simple.int8.onnx"
    model = onnx.load_from_string(graph_content(bundle, path))
    (node,) = [n for n in model.graph.node if n.name == LAYER]
    (reader,) = [n for n in model.graph.node if n.output[0] == node.input[1]]
    (scale,) = [i for i in model.graph.initializer if i.name == reader.input[1]]
    scale.CopyFrom(numpy_helper.from_array(8 * numpy_helper.to_array(scale), scale.name))
    replace_file(bundle, path, model.SerializeToString())


def swap_branches(bundle: Path) -> None:
    simple, complex_ = (graph_content(bundle, f"onnx/{name}.int8.onnx") for name in ("simple", "complex"))
    replace_file(bundle, "onnx/simple.int8.onnx", complex_)
    replace_file(bundle, "onnx/complex.int8.onnx", simple)


def turn_classes(bundle: Path) -> None:
    """The last layer's outputs stand one place further on, in both branches."""
    for name in ("simple", "complex"):
        path = f"onnx/{name}.int8.onnx"
        model = onnx.load_from_string(graph_content(bundle, path))
        (last,) = [n for n in model.graph.node if n.output[0] == "logits"]
        last.output[0] = "before"
        order = numpy_helper.from_array(np.roll(np.arange(100), 1), "order")
        model.graph.initializer.append(order)
        model.graph.node.append(onnx.helper.make_node("Gather", ["before", "order"], ["logits"], "turned", axis=1))
        replace_file(bundle, path, model.SerializeToString())


def raise_threshold(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["router"]["bounds"].update(onnx=[m["router"]["bounds"]["onnx"][0] + 0.2]))


def blur(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["preprocessing"].update(resize="bilinear"))


def calibrate_on_noise(bundle: Path, exported: Path) -> None:
    """Both branches quantized on what a camera sees with its cap on, so that real activations do not fit the ranges."""
    random = np.random.RandomState(0)
    noise = [random.randint(64, 66, (1, 64, 64, 3)).astype(np.uint8) for _ in range(16)]
    for name in ("simple", "complex"):
        model = onnx.load(exported / f"onnx/{name}.fp32.onnx")
        graph = OnnxGraph(name, "fp32", model, count_mmacs(model))
        replace_file(bundle, f"onnx/{name}.int8.onnx", quantize(graph, OnnxQuantizeSpec(), noise).content)


@dataclasses.dataclass(frozen=True)
class Planted:
    """What the gate said of the sound bundle and of each fault; where a copy of the bundle lies, and what the build said."""

    reports: dict[str, ParityReport]
    bundle: Path
    said: str

    def __getitem__(self, fault: str) -> ParityReport:
        return self.reports[fault]

    def failed(self, fault: str) -> set[str]:
        return {limit.name for limit in self.reports[fault].limits if limit.verdict == FAIL}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    folder = tmp_path_factory.mktemp("planted")
    content: dict[str, Any] = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text())
    content["checkpoint"]["path"] = str(ROOT / "artifacts/checkpoints/quickstart.safetensors")
    content["data"] |= {"calibration": str(ROOT / "calibration/shapes_256.yaml"), "gate": {"split": "test", "limit": IMAGES}}
    content["targets"] = {"onnx": content["targets"]["onnx"]}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    reports: dict[str, ParityReport] = {}
    faults: dict[str, Callable[[Path], object]] = {
        "scale": corrupt_scale,
        "swap": swap_branches,
        "turned": turn_classes,
        "threshold": raise_threshold,
        "blur": blur,
    }

    def gate_every_fault(
        prepared: Prepared, bundle: Bundle, exported: ExportedGraphs, traced: TracedReference, progress: Progress
    ) -> ParityReport:
        def report_of(name: str, fault: Callable[[Path], object]) -> None:
            copy = folder / name
            shutil.copytree(bundle.path, copy)
            fault(copy)
            reports[name] = gate_staged(prepared, open_bundle(copy), exported, traced, no_progress)

        reports["sound"] = gate_staged(prepared, bundle, exported, traced, progress)
        for name, fault in faults.items():
            report_of(name, fault)
        report_of("noise", lambda copy: calibrate_on_noise(copy, exported.folder))
        shifted = dataclasses.replace(traced.reference, labels=(traced.reference.labels + 1) % 100)
        relabelled = dataclasses.replace(traced, reference=shifted)
        reports["labels"] = gate_staged(prepared, bundle, exported, relabelled, no_progress)
        return reports["scale"]  # so that the build ends as one with this fault does

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "gate_staged", gate_every_fault)
        with pytest.raises(GateFailed) as failed:
            pipeline.run_build(load_recipe(recipe), folder / "bundle", SilentWatch())
    yield Planted(reports, folder / ".bundle.staging", failed.value.what)


def test_a_sound_build_of_few_images_is_inconclusive_and_says_how_many_it_needs(planted: Planted) -> None:
    report = planted["sound"]
    undecided = [limit for limit in report.limits if limit.verdict == INCONCLUSIVE]
    assert report.verdict == INCONCLUSIVE and undecided
    for limit in undecided:
        assert limit.images == IMAGES < (limit.images_needed or 0)
        assert f"{IMAGES} images leave" in limit.said() and f"about {limit.images_needed:,} would decide" in limit.said()


def test_a_sound_build_keeps_its_answers_on_the_export_hop(planted: Planted) -> None:
    rows = {(h["to"], h["path"]): h for h in planted["sound"].hops}
    assert set(rows) == {(to, path) for to in ("onnx fp32", "onnx int8") for path in ("routed", "simple", "complex")}
    for path in ("routed", "simple", "complex"):
        export, int8 = rows["onnx fp32", path], rows["onnx int8", path]
        assert export["agreement"] == 1 and export["mean_kl"] < 1e-8
        assert int8["agreement"] > 0.95 and int8["logit_cosine"] > 0.99 and 0 < int8["mean_kl"] < 0.1
    for path in ("simple", "complex"):
        assert rows["onnx fp32", path]["token_overlap"] == 1
        assert 0.9 < rows["onnx int8", path]["token_overlap"] <= 1
    assert rows["onnx fp32", "routed"]["router_agreement"] == 1


def test_a_corrupted_scale_fails_and_the_hop_and_the_branch_are_named(planted: Planted) -> None:
    report = planted["scale"]
    assert report.verdict == FAIL
    assert "onnx.simple.min_agreement" in planted.failed("scale")
    assert not {name for name in planted.failed("scale") if ".complex." in name or "router" in name}
    assert any("from onnx fp32 to onnx int8 branch simple keeps" in line for line in report.findings)
    assert "onnx: int8 scales or ranges of simple do not fit these images, unlike those of the rest" in report.findings
    lost = report.targets["onnx"]["attribution"]["lost_by"]
    assert lost["quantization"]["simple"] > 20 > lost["quantization"]["complex"] and lost["router_flip"] == 0
    assert "onnx.simple.min_agreement" in planted.said and "branch simple keeps" in planted.said
    assert "by quantization of simple" in planted.said


def test_swapped_branches_fail_and_are_named(planted: Planted) -> None:
    assert planted["swap"].verdict == FAIL
    assert {"onnx.simple.min_agreement", "onnx.complex.min_agreement"} & planted.failed("swap")
    assert not any("do not fit these images" in line for line in planted["swap"].findings)
    for one, other in (("simple", "complex"), ("complex", "simple")):
        expected = f"onnx: branch {one} answers as the reference's {other} does: they may have been swapped"
        assert expected in planted["swap"].findings
    assert "onnx.min_router_agreement" not in planted.failed("swap")


def test_outputs_in_another_order_than_the_labels_fail_and_are_named(planted: Planted) -> None:
    assert planted["turned"].verdict == FAIL
    assert (
        "onnx answers are off by 1 classes: its outputs stand in another order than the labels" in planted["turned"].findings
    )


def test_shifted_labels_fail_though_reference_and_target_agree(planted: Planted) -> None:
    report = planted["labels"]
    assert report.verdict == FAIL and planted.failed("labels") == {"reference.class_shift"}
    (limit,) = [x for x in report.limits if x.verdict == FAIL]
    assert "the reference's answers are off by 99 classes from the labels" in limit.said()


def test_a_wrong_threshold_fails_as_the_routers(planted: Planted) -> None:
    report = planted["threshold"]
    assert report.verdict == FAIL and "onnx.min_router_agreement" in planted.failed("threshold")
    assert any("the router sends" in line and "simple" in line for line in report.findings)
    attribution = report.targets["onnx"]["attribution"]
    assert attribution["lost_by"]["router_flip"] > sum(attribution["lost_by"]["quantization"].values())
    branches = [h for h in report.hops if h["to"] == "onnx int8" and h["path"] != "routed"]
    assert all(h["agreement"] > 0.95 for h in branches)  # each is sound on the images that the reference sends to it


def test_calibration_on_noise_fails_and_is_named_though_it_costs_few_answers(planted: Planted) -> None:
    """The weights are too sure of such easy images for the answers to fail on so few: it is the logits that show it."""
    report = planted["noise"]
    assert planted.failed("noise") >= {"onnx.simple.min_sqnr_db", "onnx.complex.min_sqnr_db"}
    assert "onnx: int8 ranges of all branches do not fit these images: was it calibrated on others?" in report.findings
    noise, sound = ({(h["to"], h["path"]): h for h in planted[f].hops} for f in ("noise", "sound"))
    for path in ("simple", "complex"):
        assert noise["onnx fp32", path] == sound["onnx fp32", path]
        assert noise["onnx int8", path]["mean_kl"] > 10 * sound["onnx int8", path]["mean_kl"]
    assert any("from onnx fp32 to onnx int8" in line for line in report.findings)


def test_another_interpolation_is_refused_before_the_gate_and_shows_in_it(planted: Planted, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(planted.bundle, copy)
    blur(copy)
    with pytest.raises(BundleIntegrityError, match="preprocessing gives other pixels"):
        check_preprocessing(open_bundle(copy))
    results, _ = check_golden(open_bundle(copy))
    assert {r.role for r in results if not r.passed} >= {"simple", "complex"}
    sound, blurred = ({h["path"]: h for h in planted[f].hops if h["to"] == "onnx int8"} for f in ("sound", "blur"))
    for path in ("simple", "complex"):
        assert blurred[path]["mean_kl"] > 2 * sound[path]["mean_kl"]


def test_every_changed_image_of_every_fault_has_a_cause_and_the_lost_add_up(planted: Planted) -> None:
    for report in planted.reports.values():
        found = report.targets["onnx"]["attribution"]
        by = found["lost_by"]
        assert found["lost"] == by["router_flip"] + by["token_choice"] + sum(by["quantization"].values())
        lost = [c for c in found["changed"] if c["before"]["answer"] == c["label"] != c["after"]["answer"]]
        assert len(lost) == found["lost"]
        assert {c["cause"] for c in found["changed"]} <= {"router_flip", "token_choice", "quantization"}
        assert {c["id"] for c in found["changed"]} <= set(range(IMAGES))
