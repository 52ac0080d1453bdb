"""A build that measures its layers and searches those to keep float: what the bundle then says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from athe_export.bundle.manifest import Manifest
from athe_export.bundle.reader import open_bundle
from athe_export.errors import RecipeError
from athe_export.pipeline import run_build
from athe_export.recipe import load_recipe
from athe_export.report.precision_section import precision_section, search_of, sensitivity_of
from tests.conftest import TINY, SilentWatch, write_recipe
from tests.tools import command

LAYERS = ["patch_embed.proj"] + [
    f"blocks.{b}.{name}" for b in range(3) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]
AUTO = {"max_top1_drop_pp": 4, "max_slowdown": 100, "images": 200}


@pytest.fixture(scope="module")
def searched(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SilentWatch]:
    """Sensitivity of ONNX's layers, one kept float by the recipe, and a search so bounded that it ends with one trial."""
    import shutil

    folder, watch = tmp_path_factory.mktemp("searched"), SilentWatch()
    shutil.copytree(tiny_inputs, folder, dirs_exist_ok=True)
    quantize = {"keep_float": ["head"], "sensitivity": {"images": 40}, "auto": AUTO | {"minutes": 0}}
    recipe = write_recipe(folder, TINY | {"targets": {"onnx": {"quantize": quantize}}})
    run_build(load_recipe(recipe), folder / "bundle", watch)
    return folder / "bundle", watch


@pytest.fixture(scope="module")
def manifest(searched: tuple[Path, SilentWatch]) -> Manifest:
    return open_bundle(searched[0]).manifest


def test_every_int8_layer_of_every_branch_is_ranked(manifest: Manifest) -> None:
    assert manifest.precision is not None and set(manifest.precision) == {"onnx"}
    found = manifest.precision["onnx"]["sensitivity"]
    assert (found["split"], found["by"], set(found["branches"])) == ("holdout", "layer", {"simple", "complex"})
    for branch in found["branches"].values():
        assert sorted(row["name"] for row in branch["ranked"]) == sorted(LAYERS) and branch["not_measured"] == []
        noise = [row["sqnr_db"] for row in branch["ranked"]]
        assert noise == sorted(noise) and 0 <= branch["together"]["agreement"] <= 1
    assert sum(branch["images"] for branch in found["branches"].values()) == 40


def test_the_search_is_recorded_with_its_limits_and_its_end(manifest: Manifest) -> None:
    search = search_of(manifest, "onnx")
    assert search is not None and len(search["trials"]) == 1
    assert (search["limits"]["max_top1_drop_pp"], search["limits"]["confidence"], search["minutes"]) == (4, 0.95, 0)
    assert (search["kept_by_recipe"], search["keep_float"], search["trials"][0]["images"]) == (["head"], [], 200)
    assert search["ended"] == ("met" if search["met"] else "minutes")
    assert any(note.startswith("onnx: automatic precision") for note in manifest.notes)


def test_stages_are_those_of_the_plan(searched: tuple[Path, SilentWatch]) -> None:
    from athe_export.plan import plan_build

    recipe = searched[0].parent / "recipe.yaml"
    assert searched[1].stages == plan_build(load_recipe(recipe), searched[0], None, None)["stages"]
    assert {"onnx: sensitivity", "onnx: search"} <= set(searched[1].stages)


def test_inspect_shows_the_layers_and_the_list_to_paste(searched: tuple[Path, SilentWatch]) -> None:
    told = command("inspect", searched[0], "--sensitivity")
    assert told.code == 0 and "blocks.1.mlp.fc2" in told.out and 'keep_float: ["head"]' in told.out
    found = command("inspect", searched[0], "--sensitivity", "--json").document
    assert found["precision"] == open_bundle(searched[0]).manifest.precision


def test_the_report_shows_both(manifest: Manifest, searched: tuple[Path, SilentWatch]) -> None:
    page = (searched[0] / "report.html").read_text()
    assert precision_section(manifest) in page and "keep_float: [&quot;head&quot;]" in page
    assert len(sensitivity_of(manifest)) == 2 * (1 + len(LAYERS))


def test_a_bundle_without_the_measurement_says_how_to_get_it(built: Path) -> None:
    told = command("inspect", built, "--sensitivity")
    assert told.code == 2 and "sensitivity: {}" in told.err
    assert precision_section(open_bundle(built).manifest) == ""


def test_a_layer_that_the_search_keeps_float_is_float_in_the_bundle(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """One layer is kept from int8 by a limit that nothing holds: the best set is then what the graphs were made with."""
    auto = AUTO | {"max_top1_drop_pp": 0, "images": 60}
    recipe = tiny(targets={"onnx": {"quantize": {"keep_float": LAYERS[:-2], "auto": auto}}})
    run_build(load_recipe(recipe), tmp_path / "bundle", SilentWatch())
    made = open_bundle(tmp_path / "bundle").manifest
    search = search_of(made, "onnx")
    assert search is not None and (search["met"], search["ended"]) == (False, "exhausted")
    assert set(search["order"]) == {*LAYERS[-2:], "head"} and len(search["trials"]) > 2
    for graph in (g for g in made.graphs if g.role != "router"):
        assert {f"Gemm {name}" for name in search["keep_float"]} <= set(graph.float_op_names)
        assert graph.int8_ops == 3 - len(search["keep_float"])


def test_untrained_weights_are_not_searched(tiny: Callable[..., Path], tmp_path: Path) -> None:
    auto = {"onnx": {"quantize": {"auto": {"max_top1_drop_pp": 0.5}}}}
    recipe = tiny(checkpoint={"random_seed": 1}, targets=auto)
    with pytest.raises(RecipeError, match="never trained"):
        run_build(load_recipe(recipe), tmp_path / "bundle", SilentWatch())
    assert not (tmp_path / "bundle").exists()
