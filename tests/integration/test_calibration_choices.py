"""Builds that choose a calibrator, draw other calibration images and equalise: what the bundle says of it, and that it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from athe_export.bundle.reader import open_bundle
from athe_export.data.shapes import Shapes
from athe_export.errors import RecipeError
from athe_export.pipeline import run_build
from athe_export.recipe import load_recipe
from athe_export.report.calibration_section import calibration_section, draw_rows, trial_rows
from athe_export.runtime.golden import check_golden
from tests.conftest import LITERT_ONLY, TINY, SilentWatch, write_recipe

AUTO = {"precisions": ["int8", "fp32"], "quantize": {"calibrator": "auto"}}


def built_with(recipe: Path, output: Path) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """The manifest's calibration, its notes, and the stages of the build; the bundle repeats its golden outputs."""
    watch = SilentWatch()
    run_build(load_recipe(recipe), output, watch)
    bundle = open_bundle(output)
    bundle.check()
    results, not_run = check_golden(bundle)
    assert not not_run and all(r.bit_equal for r in results)
    return bundle.manifest.calibration, bundle.manifest.notes, watch.stages


@pytest.fixture(scope="module")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("choices") / "bundle"


@pytest.fixture(scope="module")
def onnx(tiny_inputs: Path, onnx_bundle: Path) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    folder = onnx_bundle.parent
    for name in ("tiny.safetensors", "calibration.yaml"):
        (folder / name).write_bytes((tiny_inputs / name).read_bytes())
    changes = {"targets": {"onnx": AUTO}, "equalise": {"shift": True}, "parity": {**TINY["parity"], "stability_draws": 2}}
    return built_with(write_recipe(folder, TINY | changes), onnx_bundle)


def test_auto_records_every_calibrator_of_the_target_on_every_branch_and_takes_one(onnx: Any) -> None:
    calibration, _, stages = onnx
    (choice,) = calibration["choices"]
    assert [t["calibrator"] for t in choice["trials"]] == ["min_max", "percentile", "entropy", "mse"]
    for trial in choice["trials"]:
        assert set(trial["roles"]) == {"simple", "complex"}  # ONNX's router stays float
        assert sum(role["images"] for role in trial["roles"].values()) == 512
        assert 0 <= trial["agreement"] <= 1 and trial["sqnr_db"] > 5
    best = next(t for t in choice["trials"] if t["calibrator"] == choice["calibrator"])
    assert best["agreement"] >= max(t["agreement"] for t in choice["trials"]) - 0.03
    assert calibration["calibrators"] == {"onnx": choice["calibrator"]}
    assert stages.index("onnx: calibrator") < stages.index("onnx: quantize simple")


def test_stability_holds_the_recipes_own_set_and_the_other_draws(onnx: Any) -> None:
    found = onnx[0]["stability"]
    assert (found["other_draws"], found["calibration_images"], found["held_out_images"]) == (2, 80, 512)
    assert found["not_measured"] == {} and set(found["targets"]) == {"onnx"}
    target = found["targets"]["onnx"]
    assert len(target["draws"]) == 3
    for name in ("agreement", "top1"):
        values = [draw[name] for draw in target["draws"]]
        assert target[f"{name}_spread_pp"] == pytest.approx(100 * (max(values) - min(values)))
    assert target["router_agreement_spread_pp"] is None and target["draws"][0]["router_agreement"] is None
    chosen = onnx[0]["choices"][0]
    own = next(t for t in chosen["trials"] if t["calibrator"] == chosen["calibrator"])
    assert target["draws"][0]["agreement"] == pytest.approx(own["agreement"])  # the same graphs, the same images


def test_equalisation_is_said_with_what_it_changed_and_stands_before_export(onnx: Any) -> None:
    _, notes, stages = onnx
    (said,) = (n for n in notes if "equalised" in n)
    assert said.startswith("LayerNorm's scales were equalised (alpha 0.5, shifted); fp32 logits changed by ")
    assert stages.index("routing") < stages.index("equalise") < stages.index("onnx: export router")


def test_in_litert_an_int8_router_is_tried_and_drawn_for_as_well_and_branches_are_equalised(
    tiny_inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "calibration.yaml").write_bytes((tiny_inputs / "calibration.yaml").read_bytes())
    changes = {"targets": {"litert": AUTO}, "equalise": {}, "parity": {**TINY["parity"], "stability_draws": 1}}
    calibration, notes, _ = built_with(write_recipe(tmp_path, TINY | LITERT_ONLY | changes), tmp_path / "bundle")
    (choice,) = calibration["choices"]
    assert [t["calibrator"] for t in choice["trials"]] == ["min_max", "moving_average", "percentile", "mse"]
    assert all(t["roles"]["router"]["images"] == 512 and t["roles"]["router"]["top1"] is None for t in choice["trials"])
    assert any(note.startswith("LayerNorm's scales were equalised (alpha 0.5)") for note in notes)
    target = calibration["stability"]["targets"]["litert"]
    assert len(target["draws"]) == 2 and all(0 < draw["router_agreement"] <= 1 for draw in target["draws"])


def test_the_report_shows_every_trial_and_every_draw(onnx: Any, onnx_bundle: Path) -> None:
    manifest, page = open_bundle(onnx_bundle).manifest, (onnx_bundle / "report.html").read_text()
    trials, draws = trial_rows(manifest.calibration), draw_rows(manifest.calibration)
    assert [row[1].endswith(" (chosen)") for row in trials].count(True) == 1 and len(trials) == 4
    assert [row[1] for row in draws] == ["the recipe's set", "draw 1", "draw 2", "largest less smallest"]
    assert all(f"<td>{cell}</td>" in page for row in (*trials, *draws) for cell in row[2:])
    assert "not measured" not in calibration_section(manifest)


def test_what_is_not_asked_for_is_said_to_be_not_measured(built: Path) -> None:
    calibration = open_bundle(built).manifest.calibration
    assert (calibration["choices"], calibration["stability"]) == ([], None)
    assert calibration["calibrators"] == {"onnx": "min_max"}
    assert "Stability over calibration images: not measured" in (built / "report.html").read_text()


def test_a_bundle_of_an_earlier_version_has_no_such_section(built: Path) -> None:
    manifest = open_bundle(built).manifest
    old = {k: manifest.calibration[k] for k in ("split", "images", "ids_sha256", "pixels_sha256")}
    assert calibration_section(manifest._replace(calibration=old)) == ""


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"targets": {"onnx": {"quantize": {"calibrator": "auto"}}}}, "targets.onnx.quantize.calibrator"),
        ({"parity": {**TINY["parity"], "stability_draws": 1}}, "parity.stability_draws"),
    ],
)
def test_without_held_out_images_it_is_refused_before_anything_is_traced(
    tiny: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], where: str
) -> None:
    from athe_export.data.calibration import make_calibration_set
    from athe_export.data.folder import ImageFolder

    for split in ("train", "test"):
        for label in range(100):
            folder = tmp_path / "images" / split / f"{label:02}"
            folder.mkdir(parents=True)
            Image.fromarray(Shapes().image(split, label)).save(folder / "0.png")
    data = TINY["data"] | {"dataset": "folder", "path": str(tmp_path / "images")}
    recipe = tiny(data=data, **changes)
    made = make_calibration_set(ImageFolder(tmp_path / "images"), "train", 40, 0, "test")
    write_set(recipe.parent / "calibration.yaml", made)
    watch = SilentWatch()
    with pytest.raises(RecipeError, match="no split 'holdout'") as caught:
        run_build(load_recipe(recipe), tmp_path / "bundle", watch)
    assert caught.value.where == where
    assert watch.stages == ["data"]


def write_set(path: Path, made: Any) -> None:
    path.write_text(yaml.safe_dump(dataclasses.asdict(made) | {"ids": list(made.ids)}))
