"""The command line as users and CI see it: exit codes, one message, one JSON document, examples, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from athe_export.bundle.reader import open_bundle
from athe_export.data.shapes import Shapes
from athe_export.shipped import root, shipped_recipes
from tests.tools import cli, command, environment, listing, refused

VERBS = [
    "build",
    "verify",
    "inspect",
    "run",
    "deploy",
    "train",
    "recipes",
    "recipes list",
    "recipes copy",
    "schema",
    "doctor",
]
MISSING = "there-is-no-such-thing"


# help and usage


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str) -> None:
    shown = cli(*verb.split(), "--help")
    assert shown.code == 0
    text = " ".join(shown.out.split())
    assert f"Usage: athe-export {verb} " in text
    assert "Example" in text and f"athe-export {verb.split()[0]}" in text.split("Example")[1]


def test_the_help_names_every_verb_and_where_to_start() -> None:
    text = " ".join(cli("--help").out.split())
    assert all(f" {verb.split()[0]} " in text for verb in VERBS)
    assert "Start with: athe-export build" in text


@pytest.mark.parametrize("arguments", [[], ["recipes"]])
def test_without_a_verb_the_help_is_shown_and_nothing_is_called_an_error(arguments: list[str]) -> None:
    shown = cli(*arguments)
    assert shown.code == 2
    assert "Usage: athe-export" in shown.out
    assert shown.err == ""


def test_the_version_is_printed() -> None:
    assert cli("--version").out.startswith("athe-export 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bild", "x"], "build"),
        (["build"], "recipe"),
        (["verify", "a", "b"], "b"),
        (["run", "bundle"], "images"),
        (["run", "bundle", "photo.jpg", "--top", "0"], "--top"),
        (["run", "bundle", "photo.jpg", "--threads", "many"], "--threads"),
        (["inspect", "bundle", "--jsom"], "--jsom"),
        (["verify", "bundle", "--limit"], "--limit"),
        (["recipes", "copy", MISSING], MISSING),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_wrong_usage_is_one_message_and_exit_code_2(arguments: list[str], said: str) -> None:
    assert said in refused(2, "usage", *arguments)["message"]


def test_the_installed_command_and_the_module_are_the_same_entry_point(tmp_path: Path) -> None:
    for line in ([str(Path(sys.executable).parent / "athe-export")], [sys.executable, "-m", "athe_export.cli"]):
        done = subprocess.run([*line, "inspect", str(tmp_path / MISSING)], capture_output=True, text=True, check=False)
        assert done.returncode == 5
        assert done.stderr.startswith("error: there is no bundle here\n  at: ")
        assert done.stdout == ""


def test_colours_are_for_terminals(built: Path) -> None:
    shown = command("verify", built)
    assert "\x1b" not in shown.out + shown.err


def test_a_bug_of_ours_is_one_message_and_exit_code_1() -> None:
    code = "import athe_export.shipped as s; s.shipped_recipes = None; from athe_export.cli import main; main()"
    line = [sys.executable, "-c", code, "recipes", "list", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "report it" in done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "internal"
    debugged = subprocess.run(line, capture_output=True, text=True, env={**environment(), "ATHE_DEBUG": "1"}, check=False)
    assert "Traceback" in debugged.stderr


# recipes, schema, doctor


def test_every_shipped_recipe_is_listed_with_what_it_builds() -> None:
    listed = cli("recipes", "list", "--json").document["recipes"]
    assert {"quickstart", "micro_cifar100"} <= {r["name"] for r in listed}
    for recipe in listed:
        assert Path(recipe["path"]).is_file()
        assert len(recipe["summary"]) > 20 and recipe["summary"] in " ".join(cli("recipes", "list").out.split())


@pytest.mark.parametrize("name", [r.name for r in shipped_recipes()])
def test_a_copied_recipe_finds_all_its_files(tmp_path: Path, name: str) -> None:
    copied = [Path(p) for p in cli("recipes", "copy", name, tmp_path, "--json").document["copied"]]
    assert set(listing(tmp_path)) == {p.relative_to(tmp_path).as_posix() for p in copied}
    for path in copied:
        assert path.read_bytes() == (root() / path.relative_to(tmp_path)).read_bytes()
    if "train it first" in next(r.summary for r in shipped_recipes() if r.name == name):
        missing = refused(2, "checkpoint", "build", copied[0], "--dry-run")
        assert Path(missing["where"]).is_relative_to(tmp_path) and "athe-export train" in missing["remedy"]
        return
    plan = cli("build", copied[0], "--dry-run", "--json")
    assert plan.code == 0, plan.err
    if plan.document["gated"]:
        assert Path(plan.document["checkpoint"]).is_relative_to(tmp_path)


def test_copying_a_recipe_over_a_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "shapes_256.yaml").write_text("mine")
    error = refused(7, "environment", "recipes", "copy", "quickstart", tmp_path)
    assert error["where"] == str(tmp_path / "calibration" / "shapes_256.yaml")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "calibration",
        "calibration/shapes_256.yaml",
    ]
    assert (tmp_path / "calibration" / "shapes_256.yaml").read_text() == "mine"


def test_copying_an_unknown_recipe_lists_those_there_are(tmp_path: Path) -> None:
    assert "quickstart" in refused(2, "usage", "recipes", "copy", "quickstar", tmp_path)["remedy"]
    assert list(tmp_path.iterdir()) == []


def test_copying_to_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(7, "environment", "recipes", "copy", "quickstart", tmp_path / "file")["where"]


def test_the_schema_is_one_json_document_that_names_the_recipes_keys() -> None:
    schema = cli("schema").document
    assert {"model", "checkpoint", "data", "branches", "targets"} <= set(schema["properties"])


def test_doctor_names_every_package_and_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATHE_DATA_ROOT", str(tmp_path))
    document = cli("doctor", "--json").document
    assert all(document["packages"][name] for name in ("onnxruntime", "ai_edge_litert", "litert_torch", "torch"))
    assert {j["job"] for j in document["jobs"]} == {
        "run and verify bundles with LiteRT",
        "run and verify bundles with ONNX Runtime",
        "classify camera frames",
        "read recipes",
        "build bundles",
        "train checkpoints",
    }
    assert (document["data_root"], document["cifar100"]) == (str(tmp_path), False)
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        assert cli("doctor", "--json").document["cifar100"] is False
        (tmp_path / "cifar-100-python" / name).write_text("")
    assert cli("doctor", "--json").document["cifar100"] is True
    packed = tmp_path / "packed"
    packed.mkdir()
    monkeypatch.setenv("ATHE_DATA_ROOT", str(packed))
    assert cli("doctor", "--json").document["cifar100"] is False
    (packed / "cifar100.packed.1of1").write_text("")
    assert cli("doctor", "--json").document["cifar100"] is True


def test_doctor_says_where_cifar_100_would_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ATHE_DATA_ROOT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "athe-export" / "data"
    assert cli("doctor", "--json").document["cached"] is None
    assert "would be downloaded" in cli("doctor").out
    (cache / "cifar-100-python").mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (cache / "cifar-100-python" / name).write_text("")
    assert cli("doctor", "--json").document["cached"] == str(cache)
    shown = cli("doctor").out
    assert f"CIFAR-100 is in the user cache, {cache}" in shown.replace("\n", "") and "downloaded" not in shown


# inspect and run


def test_inspect_holds_the_contracted_fields(built: Path) -> None:
    document = cli("inspect", built, "--json").document
    assert set(document) >= {"name", "schema_version", "router", "branches", "graphs"}
    assert [b["name"] for b in document["branches"]] == ["simple", "complex"]
    fields = {
        "role",
        "target",
        "precision",
        "file",
        "bytes",
        "sha256",
        "inputs",
        "outputs",
        "mmacs",
        "int8_ops",
        "float_ops",
    }
    for graph in document["graphs"]:
        assert set(graph) >= {*fields, "xnnpack"}
        assert (built / graph["file"]).stat().st_size == graph["bytes"]
        assert all(isinstance(d, int) for t in graph["inputs"] + graph["outputs"] for d in t["shape"])
        assert graph["float_ops"] == len(graph["float_op_names"])
        assert graph["int8_ops"] > 0 or graph["role"] == "router"
    assert document["router"]["bounds"].keys() == {"reference", "onnx"}
    (stored,) = document["stored"]
    assert (stored["target"], stored["precision"]) == ("onnx", "int8")
    assert stored["bytes"] == sum(g["bytes"] for g in document["graphs"]) < stored["whole_bytes"]


def test_inspect_shows_the_same_to_a_person(built: Path) -> None:
    shown = cli("inspect", built)
    manifest = open_bundle(built).manifest
    assert shown.code == 0
    for said in ("router fp32", "simple int8", "complex int8", "score bounds", manifest.graphs[0].sha256[:12]):
        assert said in shown.out
    assert manifest.checkpoint["sha256"] in shown.out and manifest.recipe["sha256"] in shown.out


def test_run_gives_the_contracted_fields_for_every_image_in_order(built: Path, tmp_path: Path) -> None:
    images = []
    for mode, name in (
        ("RGB", "a.jpg"),
        ("RGB", "b.png"),
        ("L", "c.png"),
        ("RGBA", "d.png"),
        ("CMYK", "e.jpg"),
        ("P", "f.gif"),
    ):
        images.append(tmp_path / name)
        Image.fromarray(Shapes().image("test", 3)).resize((90, 70)).convert(mode).save(images[-1])
    found = cli("run", built, *images, "--json")
    assert found.code == 0
    results = found.document["results"]
    assert [r["image"] for r in results] == [str(i) for i in images]
    for result in results:
        assert set(result) >= {"image", "label", "probability", "branch", "router_score", "ms", "top"}
        assert result["branch"] in ("simple", "complex")
        assert 0 <= result["router_score"] <= 1 and result["ms"] > 0
        assert result["top"][0] == [result["label"], result["probability"]] and len(result["top"]) == 5
    shown = cli("run", built, *images)
    assert shown.code == 0 and all(r["label"] in shown.out for r in results)


def test_run_takes_the_branch_and_the_number_of_classes_asked_for(built: Path, photo: Path) -> None:
    found = cli("run", built, photo, "--branch", "complex", "--top", 2, "--precision", "int8", "--target", "onnx", "--json")
    assert [(r["branch"], len(r["top"])) for r in found.document["results"]] == [("complex", 2)]


def test_an_animation_is_classified_by_its_first_frame_and_that_is_said(built: Path, tmp_path: Path) -> None:
    frames = [Image.fromarray(Shapes().image("test", i)) for i in (0, 1)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert "first of 2 frames" in cli("run", built, tmp_path / "a.gif").out


def _truncated(path: Path) -> None:
    Image.fromarray(Shapes().image("test", 0)).resize((200, 200)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-1500])


def _one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1)).save(path, "PNG")


def _huge(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path, "PNG")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: None, "no such image"),
        (lambda p: p.write_text("<html>"), "not an image"),
        (lambda p: p.write_bytes(b""), "not an image"),
        (lambda p: p.mkdir(), "cannot be read"),
        (_truncated, "truncated"),
        (_one_pixel, "1x1"),
        (_huge, "million pixels"),
    ],
    ids=["missing", "not an image", "empty", "a folder", "truncated", "1x1", "huge"],
)
def test_a_bad_image_is_one_message_and_exit_code_2(
    built: Path, tmp_path: Path, make: Callable[[Path], Any], said: str
) -> None:
    make(tmp_path / "bad.jpg")
    error = refused(2, "image", "run", built, tmp_path / "bad.jpg")
    assert said in error["message"] and error["where"] == str(tmp_path / "bad.jpg")


@pytest.mark.parametrize("option", [["--branch", "hard"], ["--target", "litert"], ["--precision", "fp32"]], ids=" ".join)
def test_what_the_bundle_does_not_have_is_a_usage_error(built: Path, photo: Path, option: list[str]) -> None:
    assert option[1] in refused(2, "usage", "run", built, photo, *option)["message"]
