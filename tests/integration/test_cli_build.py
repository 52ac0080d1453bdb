"""`build` from the command line: what is refused before anything is written, and what is said of what was built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TINY, write_recipe
from tests.tools import cli, error_of, listing, refused


def test_a_dry_run_shows_the_plan_and_writes_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny()
    before = sorted(tmp_path.rglob("*"))
    plan = cli("build", recipe, "-o", tmp_path / "out", "--dry-run", "--json")
    assert plan.code == 0
    assert [b["tokens"] for b in plan.document["branches"]] == [[6], [12]]
    assert plan.document["stages"][-1] == "verify" and plan.document["gated"] is True
    shown = cli("build", recipe, "-o", tmp_path / "out", "--dry-run")
    assert "nothing was written" in shown.out and "6 of 16 patch tokens" in shown.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_finds_the_missing_checkpoint_and_writes_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny()
    recipe.with_name("tiny.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    refused(2, "checkpoint", "build", recipe, "-o", tmp_path / "out", "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before


def _rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.unlink(), "cannot be read"),
        (_truncate, "truncated"),
        (lambda p: p.write_bytes(b""), "truncated"),
        (_rewrite(lambda t: t["head.weight"].fill_(float("nan"))), "NaN or infinite values in head.weight"),
        (_rewrite(lambda t: t["cls_token"].fill_(float("-inf"))), "NaN or infinite values in cls_token"),
        (_rewrite(lambda t: t.pop("norm.bias")), "missing: norm.bias, 24"),
        (_rewrite(lambda t: t.update(extra=torch.zeros(2, 3))), "extra: extra, 2x3"),
        (_rewrite(lambda t: t.update({"head.bias": torch.zeros(10)})), "misshapen: head.bias is 10, the recipe needs 100"),
    ],
    ids=["missing", "truncated", "empty", "NaN", "infinite", "tensor missing", "tensor extra", "tensor misshapen"],
)
def test_a_bad_checkpoint_is_refused_and_nothing_is_written(
    tiny: Callable[..., Path], tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    recipe = tiny()
    damage(recipe.with_name("tiny.safetensors"))
    (tmp_path / "out").mkdir()
    before = listing(tmp_path)
    error = refused(2, "checkpoint", "build", recipe, "-o", tmp_path / "out" / "bundle")
    assert said in error["message"] and error["where"].endswith("tiny.safetensors")
    assert listing(tmp_path) == before


def test_all_problems_of_a_checkpoint_are_listed_at_once(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny()
    change = _rewrite(lambda t: (t.pop("norm.bias"), t.update(extra=torch.zeros(1)), t.update(cls_token=torch.zeros(2))))
    change(recipe.with_name("tiny.safetensors"))
    message = refused(2, "checkpoint", "build", recipe, "-o", tmp_path / "out")["message"]
    assert "missing: norm.bias" in message and "extra: extra" in message and "misshapen: cls_token" in message


def test_a_checkpoint_of_another_digest_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny(checkpoint={"path": "tiny.safetensors", "sha256": "0" * 64})
    error = refused(2, "checkpoint", "build", recipe, "-o", tmp_path / "out")
    assert "the recipe says " + "0" * 64 in error["message"]
    assert not (tmp_path / "out").exists()


class Sprung:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_holds_a_pickled_object_is_never_unpickled(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny(checkpoint={"path": "tiny.pth"})
    torch.save({"cls_token": torch.zeros(1), "trap": Sprung(tmp_path / "sprung")}, recipe.with_name("tiny.pth"))
    error = refused(2, "checkpoint", "build", recipe, "-o", tmp_path / "out")
    assert error["where"].endswith("tiny.pth")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_given_on_the_command_line_is_the_one_that_is_read(tiny: Callable[..., Path], tmp_path: Path) -> None:
    error = refused(2, "checkpoint", "build", tiny(), "--checkpoint", tmp_path / "other.pth", "-o", tmp_path / "out")
    assert error["where"] == str(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such recipe"), ("", "empty"), ("{", "line"), ("schema: 1\nnmae: x\n", "name")],
    ids=["missing", "empty", "not YAML", "unknown key"],
)
def test_a_bad_recipe_is_one_message_and_exit_code_2(tmp_path: Path, text: str | None, said: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    error = refused(2, "recipe", "build", recipe, "-o", tmp_path / "out")
    assert said in error["message"] and error["where"] == str(recipe)
    assert not (tmp_path / "out").exists()


def test_a_calibration_set_of_the_gates_images_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny()
    path = recipe.with_name("calibration.yaml")
    path.write_text(path.read_text().replace("split: train", "split: test"))
    refused(2, "calibration", "build", recipe, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_dataset_is_exit_code_6(tiny: Callable[..., Path], tmp_path: Path) -> None:
    data = {"dataset": "cifar100", "preprocessing": {"source_size": 32}, "calibration": "calibration.yaml"}
    recipe = tiny(data=data)
    (tmp_path / "data").mkdir()
    refused(6, "dataset", "build", recipe, "--data-root", tmp_path / "data", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_exit_code_7(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    error = refused(7, "environment", "build", tiny(), "-o", tmp_path / "file" / "bundle")
    assert "-o" in error["remedy"]
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_is_not_a_bundle_is_exit_code_7(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    error = refused(7, "environment", "build", tiny(), "-o", tmp_path / "thesis")
    assert "not a bundle" in error["message"]
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


# the second branch of the tiny recipe alone, so that its checkpoint fits
PLAIN: dict[str, Any] = {"router": None, "branches": TINY["branches"][1:]}


@pytest.fixture(scope="module")
def untrained(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The JSON, the stderr and the bundle of a build of random weights: one branch, no router."""
    folder = tmp_path_factory.mktemp("untrained")
    (folder / "calibration.yaml").write_bytes((tiny_inputs / "calibration.yaml").read_bytes())
    recipe = write_recipe(folder, TINY | PLAIN | {"checkpoint": {"random_seed": 1}})
    done = cli("build", recipe, "-o", folder / "bundle", "--json")
    assert done.code == 0, done.err
    return done.document, done.err, folder / "bundle"


def test_untrained_weights_build_with_verdict_not_gated(untrained: tuple[dict[str, Any], str, Path]) -> None:
    document, _, bundle = untrained
    assert set(document) >= {"bundle", "verdict", "parity", "stages"}
    assert (document["bundle"], document["verdict"], document["parity"]) == (str(bundle), "not_gated", None)
    assert any("untrained" in note for note in document["notes"])


def test_a_build_says_each_stage_as_it_begins(untrained: tuple[dict[str, Any], str, Path]) -> None:
    document, said, _ = untrained
    stages = [s["name"] for s in document["stages"]]
    assert [line for line in said.splitlines() if not line.startswith(" ")] == stages
    assert {"data", "checkpoint", "onnx: export complex", "onnx: quantize complex", "golden", "verify"} <= set(stages)
    assert all(s["seconds"] >= 0 for s in document["stages"])


def test_every_output_says_that_untrained_weights_were_not_gated(untrained: tuple[dict[str, Any], str, Path]) -> None:
    bundle = untrained[2]
    shown = cli("inspect", bundle)
    assert "not_gated" in shown.out and "untrained" in shown.out
    assert cli("verify", bundle).code == 0
    assert "never trained" in (bundle / "report.html").read_text()


def test_the_gate_of_a_bundle_that_was_never_gated_is_refused(
    untrained: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    assert "never gated" in refused(2, "usage", "verify", untrained[2], "--data-root", tmp_path)["message"]


def test_a_model_of_one_branch_runs_without_a_router(untrained: tuple[dict[str, Any], str, Path], photo: Path) -> None:
    found = cli("run", untrained[2], photo, "--json")
    assert [(r["branch"], r["router_score"]) for r in found.document["results"]] == [("complex", None)]
    assert cli("run", untrained[2], photo).code == 0


def test_an_export_that_differs_from_torch_is_exit_code_8(tiny: Callable[..., Path], tmp_path: Path) -> None:
    # finite weights whose products are not: torch and the graph both answer NaN, which equals nothing
    recipe = tiny(**PLAIN)
    _rewrite(lambda t: t.update({"head.weight": torch.full((100, 24), 3e38)}))(recipe.with_name("tiny.safetensors"))
    done = cli("build", recipe, "-o", tmp_path / "out" / "bundle", "--json")
    error = error_of(done, 8, "export")
    assert "differs from torch" in error["message"] and error["where"] == "the deployed form of complex"
    assert list(listing(tmp_path / "out")) == []
