"""`verify`: integrity, the golden self-test and the parity gate, on a real bundle and on damaged copies of it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athe_export.bundle.reader import open_bundle
from tests.tools import (
    cli,
    command,
    edit_arrays,
    edit_manifest,
    error_of,
    listing,
    refused,
    replace_file,
    require_one_message,
)

SIMPLE = "onnx/simple/int8"


def test_a_bundle_passes_where_it_was_built_bit_for_bit(built: Path) -> None:
    found = cli("verify", built, "--json")
    assert found.code == 0
    golden = found.document["golden"]
    assert {g["role"] for g in golden} == {"router", "simple", "complex"}
    for row in golden:
        assert set(row) >= {"target", "role", "same_top1", "bit_equal", "max_abs_diff"}
        assert (row["target"], row["same_top1"], row["bit_equal"], row["max_abs_diff"]) == ("onnx", True, True, 0)
    assert (found.document["not_run"], found.document["parity"]) == ([], None)


def test_verify_writes_nothing(built: Path, data: Path) -> None:
    before = listing(built.parent)
    assert cli("verify", built, "--data-root", data).code == 0
    assert listing(built.parent) == before


def test_a_copy_elsewhere_passes(bundle: Path) -> None:
    shown = cli("verify", bundle)
    assert shown.code == 0
    assert "verdict: pass" in shown.out


@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_every_damaged_file_is_listed(bundle: Path, verb: str) -> None:
    content = (bundle / "onnx/simple.int8.part.onnx").read_bytes()
    (bundle / "onnx/simple.int8.part.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (bundle / "labels.txt").unlink()
    (bundle / "notes.txt").write_text("mine")
    error = refused(5, "bundle_integrity", verb, bundle)
    assert {f["path"]: f["problem"] for f in error["files"]} == {
        "onnx/simple.int8.part.onnx": "changed",
        "labels.txt": "missing",
        "notes.txt": "extra",
    }
    assert error["where"] == str(bundle)


@pytest.mark.parametrize("verb", ["verify", "inspect", "run"])
def test_a_path_out_of_the_bundle_is_refused_by_every_verb(bundle: Path, tmp_path: Path, verb: str) -> None:
    edit_manifest(bundle, lambda m: m["files"][0].update(path="../router.onnx"))
    image = [tmp_path / "photo.jpg"] if verb == "run" else []
    assert "leaves the bundle" in refused(5, "bundle_integrity", verb, bundle, *image)["message"]


@pytest.mark.parametrize("verb", ["verify", "inspect", "run"])
def test_an_unknown_schema_is_refused_by_every_verb(bundle: Path, tmp_path: Path, verb: str) -> None:
    edit_manifest(bundle, lambda m: m.update(schema_version=99))
    image = [tmp_path / "photo.jpg"] if verb == "run" else []
    error = refused(5, "bundle_integrity", verb, bundle, *image)
    assert "schema_version 99" in error["message"] and "reads 1" in error["message"]


def test_golden_arrays_that_hold_pickled_objects_are_never_unpickled(bundle: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    edit_arrays(bundle, "golden.npz", lambda a: a.update({SIMPLE: np.array([Trap()], dtype=object)}))
    assert "unreadable" in refused(5, "bundle_integrity", "verify", bundle)["message"]
    assert not (tmp_path / "sprung").exists()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"golden", b"PK\x03\x04 cut off", _npy(), pickle.dumps({"images": 1})],
    ids=["empty", "text", "truncated archive", "single array", "pickle"],
)
@pytest.mark.parametrize("name", ["golden.npz", "reference.npz"])
def test_an_archive_that_is_none_is_refused(bundle: Path, data: Path, name: str, content: bytes) -> None:
    replace_file(bundle, name, content)
    refused(5, "bundle_integrity", "verify", bundle, "--data-root", data)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("images"),
        lambda a: a.pop(SIMPLE),
        lambda a: a.update({SIMPLE: a[SIMPLE][:, :7]}),
        lambda a: a.update({SIMPLE: a[SIMPLE][:3]}),
        lambda a: a.update(images=a["images"][:, :8]),
        lambda a: a.update(images=a["images"].astype(np.float32)),
        lambda a: a.update({k: v[:0] for k, v in a.items()}),
    ],
    ids=["no images", "no outputs", "fewer classes", "fewer rows", "other size", "other type", "no rows"],
)
def test_golden_arrays_that_do_not_belong_together_are_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_arrays(bundle, "golden.npz", change)
    assert "golden" in refused(5, "bundle_integrity", "verify", bundle)["message"]


def test_other_golden_outputs_fail_the_self_test_and_name_the_graph(bundle: Path) -> None:
    edit_arrays(bundle, "golden.npz", lambda a: a.update({SIMPLE: a[SIMPLE] + 1}))
    shown = cli("verify", bundle)
    assert shown.code == 3
    assert "verdict: fail" in shown.out
    assert shown.err.count("error: ") == 1 and "onnx simple int8 differs" in shown.err
    found = cli("verify", bundle, "--json")
    error = error_of(found, 3, "gate_failed")
    assert "onnx simple int8" in error["message"] and "complex" not in error["message"]
    rows = {g["role"]: g for g in found.document["golden"]}
    assert rows["simple"]["max_abs_diff"] == pytest.approx(1, abs=1e-3)
    assert not rows["simple"]["passed"] and rows["complex"]["passed"] and rows["router"]["passed"]


def test_a_difference_within_the_tolerance_passes_and_is_reported(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["golden"]["tolerance"].update(int8=0.06))
    edit_arrays(bundle, "golden.npz", lambda a: a.update({SIMPLE: a[SIMPLE] + np.float32(0.05)}))
    found = cli("verify", bundle, "--json")
    assert found.code == 0
    row = next(g for g in found.document["golden"] if g["role"] == "simple")
    assert row["same_top1"] and not row["bit_equal"]
    assert row["max_abs_diff"] == pytest.approx(0.05, abs=1e-3)


def test_another_decision_fails_however_near_the_outputs_are(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["golden"]["tolerance"].update(int8=1000))
    edit_arrays(bundle, "golden.npz", lambda a: a.update({SIMPLE: np.roll(a[SIMPLE], 1, axis=1)}))
    assert "decides differently" in error_of(cli("verify", bundle, "--json"), 3, "gate_failed")["message"]


def test_an_image_that_would_be_routed_elsewhere_fails(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["golden"]["tolerance"].update(fp32=1000))
    edit_arrays(bundle, "golden.npz", lambda a: a.update({"onnx/router/fp32": 1 - a["onnx/router/fp32"]}))
    message = error_of(cli("verify", bundle, "--json"), 3, "gate_failed")["message"]
    assert "onnx router fp32" in message and "decides differently" in message


def test_preprocessing_that_gives_other_pixels_is_refused_with_the_version_that_gave_them(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["preprocessing"].update(golden_sha256="0" * 64))
    error = refused(5, "bundle_integrity", "verify", bundle)
    assert "other pixels" in error["message"]
    assert "pillow " + open_bundle(bundle).manifest.tools["pillow"] in error["remedy"]


def test_a_graph_that_the_engine_cannot_load_is_refused(bundle: Path) -> None:
    replace_file(bundle, "onnx/complex.int8.onnx", b"no graph")
    assert "cannot load the graph" in refused(5, "bundle_integrity", "verify", bundle)["message"]


def test_labels_that_do_not_fit_the_graphs_are_refused(bundle: Path, tmp_path: Path) -> None:
    replace_file(bundle, "labels.txt", b"one\ntwo\n")
    assert "2 labels do not fit" in refused(5, "bundle_integrity", "run", bundle, tmp_path / "photo.jpg")["message"]


def test_a_bundle_without_its_reference_passes_without_data(bundle: Path) -> None:
    (bundle / "reference.npz").unlink()
    assert cli("verify", bundle).code == 0


def test_the_gate_without_the_reference_names_it(bundle: Path, data: Path) -> None:
    (bundle / "reference.npz").unlink()
    error = refused(2, "usage", "verify", bundle, "--data-root", data)
    assert "reference.npz" in error["message"] and "reference.npz" in error["remedy"]


def _without_torch(parity: dict[str, Any]) -> dict[str, Any]:
    """What a gate finds wherever it is run."""
    targets = {name: {k: v for k, v in found.items() if k != "attribution"} for name, found in parity["targets"].items()}
    return {k: v for k, v in parity.items() if k not in ("hops", "targets")} | {"targets": targets}


def test_the_gate_repeats_what_the_build_found(built: Path, data: Path) -> None:
    found = cli("verify", built, "--data-root", data, "--json")
    assert found.code == 0
    parity, at_build = found.document["parity"], open_bundle(built).manifest.parity
    assert at_build is not None
    # hops over graphs that the bundle does not hold, and what takes torch, are the build's alone
    assert _without_torch(parity) == _without_torch(at_build)
    assert [h["to"] for h in parity["hops"]] == ["onnx int8"] * 3 and {h["from"] for h in parity["hops"]} == {"torch fp32"}
    assert parity["hops"][1]["token_overlap"] is None and "torch" in parity["hops"][1]["token_overlap_not_measured"]
    attribution = parity["targets"]["onnx"]["attribution"]
    assert attribution["lost_by"]["token_choice"] is None and "torch" in attribution["token_choice_not_measured"]
    assert set(parity) >= {"images", "verdict", "reference", "targets", "limits"}
    fields = {"top1", "drop_pp", "drop_bound_pp", "agreement", "router_agreement", "share", "branches"}
    assert set(parity["targets"]["onnx"]) >= fields
    assert all(set(limit) >= {"name", "limit", "value", "verdict"} for limit in parity["limits"])


def test_too_few_images_decide_nothing(built: Path, data: Path) -> None:
    arguments = ("verify", built, "--data-root", data, "--limit", 2)
    shown = cli(*arguments)
    assert shown.code == 4
    assert "verdict: inconclusive" in shown.out and "min_router_agreement" in shown.err
    found = cli(*arguments, "--json")
    error = error_of(found, 4, "gate_inconclusive")
    assert "cannot be decided" in error["message"] and "--limit" in error["remedy"]
    assert (found.document["parity"]["images"], found.document["parity"]["verdict"]) == (2, "inconclusive")


def _disagree(arrays: dict[str, Any]) -> None:
    arrays["logits"] = np.roll(arrays["logits"], 1, axis=2)


def test_a_missed_limit_fails_and_says_by_how_much(bundle: Path, data: Path) -> None:
    edit_arrays(bundle, "reference.npz", _disagree)
    found = cli("verify", bundle, "--data-root", data, "--json")
    error = error_of(found, 3, "gate_failed")
    assert "onnx.min_agreement 0.2 is broken" in error["message"] and "off by" in error["message"]
    broken = [limit["name"] for limit in found.document["parity"]["limits"] if limit["verdict"] == "fail"]
    branches = [f"onnx.{branch}.{limit}" for limit in ("min_agreement", "min_sqnr_db") for branch in ("simple", "complex")]
    assert broken == ["onnx.min_agreement", *branches]
    assert all(g["passed"] for g in found.document["golden"])


def test_a_failed_self_test_outranks_an_inconclusive_gate(bundle: Path, data: Path) -> None:
    edit_arrays(bundle, "golden.npz", lambda a: a.update({SIMPLE: a[SIMPLE] + 1}))
    found = cli("verify", bundle, "--data-root", data, "--limit", 2, "--json")
    message = error_of(found, 3, "gate_failed")["message"]
    assert found.document["parity"]["verdict"] == "inconclusive"
    assert "golden" in message and "min_router_agreement" in message


def test_reference_arrays_that_do_not_belong_together_are_refused(bundle: Path, data: Path) -> None:
    edit_arrays(bundle, "reference.npz", lambda a: a.update(labels=a["labels"][:5]))
    assert "reference" in refused(5, "bundle_integrity", "verify", bundle, "--data-root", data)["message"]


def test_labels_of_other_images_than_the_references_are_refused(bundle: Path, data: Path) -> None:
    edit_arrays(bundle, "reference.npz", lambda a: a.update(labels=(a["labels"] + 1) % 100))
    error = refused(5, "bundle_integrity", "verify", bundle, "--data-root", data)
    assert "60 of the reference's 60 images have another label" in error["message"]


def test_labels_in_another_order_than_the_datasets_are_refused(bundle: Path, data: Path) -> None:
    names = (bundle / "labels.txt").read_text().splitlines()
    replace_file(bundle, "labels.txt", "".join(f"{n}\n" for n in (*names[1:], names[0])).encode())
    error = refused(5, "bundle_integrity", "verify", bundle, "--data-root", data)
    assert f"class 0 is {names[1]} in the bundle and {names[0]} in shapes" in error["message"]


def test_a_limit_warns_what_it_can_decide_before_the_gate_is_run(built: Path, data: Path) -> None:
    shown = cli("verify", built, "--data-root", data, "--limit", 40)
    assert "warning: onnx: 40 images tell a drop of" in shown.err and "can be passed" in shown.err
    (note,) = cli("verify", built, "--data-root", data, "--limit", 40, "--json").document["parity"]["notes"]
    assert note in shown.err.replace("\n", " ")
    assert "warning" not in cli("verify", built, "--data-root", data, "--limit", 60).err


def test_a_limit_that_cannot_be_passed_with_so_few_images_is_said(bundle: Path, data: Path) -> None:
    edit_manifest(bundle, lambda m: m["gate"]["limits"].update(max_top1_drop_pp=0.7))
    shown = cli("verify", bundle, "--data-root", data, "--limit", 40, "--json")
    assert "the limit of 0.7 pp cannot be passed" in shown.document["parity"]["notes"][0]
    limit = next(x for x in shown.document["parity"]["limits"] if x["name"] == "onnx.max_top1_drop_pp")
    assert (shown.code, limit["verdict"], limit["images"]) == (4, "inconclusive", 40)
    assert limit["images_needed"] > 40
    assert f"about {limit['images_needed']:,} would decide" in shown.document["error"]["message"]


def test_another_dataset_than_the_gates_is_refused(bundle: Path, data: Path) -> None:
    edit_manifest(bundle, lambda m: m["dataset"].update(sha256="0" * 64))
    error = refused(6, "dataset", "verify", bundle, "--data-root", data)
    assert error["where"] == str(data)


def test_a_bundle_of_a_missing_dataset_is_refused(bundle: Path, data: Path) -> None:
    edit_manifest(bundle, lambda m: m["dataset"].update(name="cifar100"))
    refused(6, "dataset", "verify", bundle, "--data-root", data)


def test_a_limit_without_data_is_a_usage_error(built: Path) -> None:
    assert "--data-root" in refused(2, "usage", "verify", built, "--limit", 5)["remedy"]


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert refused(5, "bundle_integrity", "verify", tmp_path)["files"] == [{"path": "manifest.json", "problem": "missing"}]


def test_a_bundle_for_an_engine_that_is_not_here_is_not_passed(bundle: Path) -> None:
    def rename_target(manifest: dict[str, Any]) -> None:
        manifest["router"]["bounds"]["tensorrt"] = manifest["router"]["bounds"]["onnx"]
        for graph in manifest["graphs"]:
            graph["target"] = "tensorrt"

    edit_manifest(bundle, rename_target)
    edit_arrays(bundle, "golden.npz", lambda a: a.update({k.replace("onnx", "tensorrt"): v for k, v in a.items()}))
    error = refused(6, "missing_dependency", "verify", bundle)
    assert "no target of the bundle can run here" in error["message"] and "no runtime for tensorrt" in error["message"]
    assert "install the athe-export that wrote the bundle" in error["remedy"]


def test_without_onnxruntime_verify_says_what_to_install(built: Path) -> None:
    shown = command("verify", built, blocked=["onnxruntime"])
    require_one_message(shown, 6)
    assert 'pip install "athe-export[onnx]"' in shown.err
    assert shown.out == ""
    error = error_of(command("verify", built, "--json", blocked=["onnxruntime"]), 6, "missing_dependency")
    assert "onnxruntime" in error["message"]
