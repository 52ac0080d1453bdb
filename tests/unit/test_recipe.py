"""Recipes: what is refused, with every problem and its line, and what a good one says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from athe_export.errors import RecipeError
from athe_export.recipe import Recipe, load_recipe, recipe_json_schema

SHIPPED = sorted((Path(__file__).parent.parent.parent / "recipes").rglob("*.yaml"))
GOOD = """\
schema: 1
name: good
model: {arch: deit, image_size: 32, patch: 8, dim: 24, depth: 3, heads: 3, classes: 100}
checkpoint: {path: good.safetensors}
data:
  dataset: shapes
  preprocessing: {source_size: 32}
  calibration: calibration.yaml
router: {arch: mobilenet_v1_0.25, image_size: 32, threshold: {share_simple: 0.5}}
branches:
  - {name: simple, prune: [{after_blocks: 1, keep: 0.4}], heads: 1}
  - {name: complex, prune: [{after_blocks: 2, keep: 0.75}], heads: 3}
targets: {onnx: {opset: 20}}
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes GOOD with replacements, given as alternating old and new text."""

    def make(*edits: str) -> Path:
        text = GOOD
        for old, new in zip(edits[::2], edits[1::2], strict=True):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return make


def refusal(path: Path) -> list[str]:
    """The problems that the recipe is refused for."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    error = caught.value
    assert error.exit_code == 2
    assert error.where == str(path)
    assert error.remedy
    first, *found = error.what.splitlines()
    if found:
        assert first == f"{len(found)} problem{'s' if len(found) > 1 else ''} in the recipe:"
    return [line.removeprefix("  ") for line in found] or [first]


def test_a_good_recipe_is_read_with_its_defaults(write: Write) -> None:
    file = load_recipe(write())
    recipe = file.recipe
    assert (recipe.model.patches, recipe.model.head_dim) == (16, 8)
    assert [b.kept_tokens(recipe.model.patches) for b in recipe.branches] == [((1, 6),), ((2, 12),)]
    assert recipe.data.gate.split == "test"
    assert recipe.targets.onnx.quantize.scheme == "static_wi8_ai8"
    assert recipe.parity.confidence == 0.95


def test_paths_are_relative_to_the_recipes_own_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("recipe.yaml")).resolve("../x.yaml") == tmp_path.parent.resolve() / "x.yaml"


def test_the_digest_of_a_recipe_follows_its_text(write: Write) -> None:
    before = load_recipe(write()).sha256
    assert load_recipe(write()).sha256 == before
    assert load_recipe(write("keep: 0.4", "keep: 0.5")).sha256 != before


def test_a_missing_recipe_is_said_with_where_to_find_one(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.yaml") == ["there is no such recipe"]


def test_a_folder_or_binary_in_place_of_a_recipe_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path)[0].startswith("cannot be read as text")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    assert refusal(binary)[0].startswith("cannot be read as text")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the document is empty"),
        ("schema: 1\nname: {\n", "line 3: not valid YAML: expected the node content, but found '<stream end>'"),
        ("- schema: 1\n", "line 1: must be a mapping of keys, not a list"),
    ],
    ids=["empty", "not-yaml", "a-list"],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert refusal(path) == [said]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema: 1", "schema: 2", "line 1: schema: '2' is not one of 1"),
        ("name: good", "name: Not good", "line 2: name: 'Not good' does not match [a-z0-9][a-z0-9_.-]*"),
        ("name: good", "name: ../up", "line 2: name: '../up' does not match [a-z0-9][a-z0-9_.-]*"),
        ("name: good", "nmae: good", "line 2: nmae: unknown key; did you mean 'name'?"),
        ("keep: 0.4", "kep: 0.4", "line 11: branches[0].prune[0].kep: unknown key; did you mean 'keep'?"),
        ("keep: 0.4", "keep: half", "line 11: branches[0].prune[0].keep: must be a number, not 'half'"),
        ("keep: 0.4", "keep: 1.4", "line 11: branches[0].prune[0].keep: 1.4 is too large; the most is 1"),
        ("keep: 0.4", "keep: 0", "line 11: branches[0].prune[0].keep: 0.0 is too small; it must be above 0"),
        ("image_size: 32, patch", "image_size: big, patch", "line 3: model.image_size: must be a whole number, not 'big'"),
        ("opset: 20", "opset: 99", "line 13: targets.onnx.opset: 99 is too large; the most is 23"),
        ("dataset: shapes", "dataset: cifar10", "line 6: data.dataset: 'cifar10' is not one of cifar100, folder, shapes; did you mean 'cifar100'?"),
        ("checkpoint: {path: good.safetensors}", "checkpoint: {path: good.safetensors, sha256: abc}", "line 4: checkpoint.sha256: 'abc' does not match [0-9a-f]{64}"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_said_with_its_line(write: Write, old: str, new: str, said: str) -> None:
    assert said in refusal(write(old, new))


HELD = "measures on the held-out images, which data.gate.split says the gate is run on"
GATE = ("  calibration: calibration.yaml\n", "  calibration: calibration.yaml\n  gate: {split: holdout}\n")


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("{litert: {quantize: {calibrator: entropy}}}", "targets.litert.quantize.calibrator: 'entropy' is not one of min_max, moving_average, percentile, mse, auto"),
        ("{onnx: {quantize: {calibrator: moving_average}}}", "targets.onnx.quantize.calibrator: 'moving_average' is not one of min_max, percentile, entropy, mse, auto"),
        ("{onnx: {quantize: {scheme: dynamic_wi8_afp32, calibrator: auto}}}", "targets.onnx.quantize.calibrator: auto compares ranges of static_wi8_ai8; dynamic_wi8_afp32 has none to compare"),
        ("{litert: {quantize: {scheme: dynamic_wi8_afp32, dynamic: [head]}}}", "targets.litert.quantize.dynamic: names layers of static_wi8_ai8; in dynamic_wi8_afp32 all are"),
    ],
)  # fmt: skip
def test_what_a_target_or_scheme_does_not_have_is_refused_with_what_it_has(write: Write, targets: str, said: str) -> None:
    assert refusal(write("{onnx: {opset: 20}}", targets)) == [f"line 13: {said}"]


def test_nothing_is_chosen_on_the_images_of_the_gate(write: Write) -> None:
    path = write(*GATE, "{onnx: {opset: 20}}", "{litert: {quantize: {calibrator: auto}}}\nparity: {stability_draws: 2}")
    assert refusal(path) == [
        f"line 14: targets.litert.quantize.calibrator: auto {HELD}",
        f"line 15: parity.stability_draws: {HELD}",
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("keep: 0.4", "keep: 0.03", "line 11: branches[0].prune[0].keep: 0.03 of 16 patch tokens leaves no token"),
        ("heads: 1", "heads: 4", "line 11: branches[0].heads: 4 heads are more than the model's 3"),
        ("after_blocks: 2", "after_blocks: 3", "line 12: branches[1].prune[0].after_blocks: 3 must be above 0 and below depth 3"),
        ("name: complex", "name: simple", "line 12: branches[1].name: 'simple' names two branches; choose another"),
        ("name: complex", "name: router", "line 12: branches[1].name: 'router' is the router's role; choose another"),
        ("name: complex", "name: auto", "line 12: branches[1].name: 'auto' means the router's choice; choose another"),
        ("patch: 8", "patch: 7", "line 3: model.patch: 7 does not divide image_size 32"),
        ("dim: 24", "dim: 25", "line 3: model.heads: 3 does not divide dim 25"),
        ("{path: good.safetensors}", "{path: a, random_seed: 1}", "line 4: checkpoint: must hold either path or random_seed"),
        ("{path: good.safetensors}", "{}", "line 4: checkpoint: must hold either path or random_seed"),
        ("{path: good.safetensors}", f"{{random_seed: 1, sha256: {'a' * 64}}}", "line 4: checkpoint.sha256: belongs to a path"),
        ("dataset: shapes", "dataset: folder", "line 5: data.path: is needed with dataset: folder, and only there"),
        ("{source_size: 32}", "{source_size: 32, std: [1, 0, 1]}", "line 7: data.preprocessing.std[1]: 0.0 is too small; it must be above 0"),
        ("{share_simple: 0.5}", "{}", "line 9: router.threshold: must be a number, {max_drop_pp: …} or {share_simple: …}, one of them"),
        ("{share_simple: 0.5}", "{share_simple: 0.5, max_drop_pp: 1}", "line 9: router.threshold: must be a number, {max_drop_pp: …} or {share_simple: …}, one of them"),
        ("{share_simple: 0.5}", "[0.2, 0.4]", "line 9: router.threshold: 2 branches need 1 bounds, not 2"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_refused(write: Write, old: str, new: str, said: str) -> None:
    assert refusal(write(old, new)) == [said]


def test_a_second_pruning_that_leaves_no_token_is_refused(write: Write) -> None:
    stages = "{after_blocks: 1, keep: 0.1}, {after_blocks: 2, keep: 0.1}"
    said = "line 11: branches[0].prune[1].keep: 0.1 of 16 patch tokens leaves no token"
    assert refusal(write("{after_blocks: 1, keep: 0.4}", stages)) == [said]


def test_prunings_stand_in_block_order(write: Write) -> None:
    stages = "{after_blocks: 2, keep: 0.5}, {after_blocks: 1, keep: 0.5}"
    said = "line 11: branches[0].prune[1].after_blocks: 1 must be above 2 and below depth 3"
    assert refusal(write("{after_blocks: 1, keep: 0.4}", stages)) == [said]


def test_several_branches_need_a_router(write: Write) -> None:
    router = GOOD.splitlines()[8] + "\n"
    assert refusal(write(router, "")) == ["line 1: router: 2 branches need a router"]


def test_a_router_needs_several_branches(write: Write) -> None:
    second = GOOD.splitlines()[11] + "\n"
    said = "line 9: router: a single branch has nothing to route; remove it or add a branch"
    assert refusal(write(second, "")) == [said]


def test_one_branch_without_a_router_is_a_plain_model(write: Write) -> None:
    lines = GOOD.splitlines()
    recipe = load_recipe(write(lines[11] + "\n", "", lines[8] + "\n", "")).recipe
    assert recipe.router is None
    assert len(recipe.branches) == 1


def test_three_branches_are_routed_by_two_ascending_bounds(write: Write) -> None:
    third = "\n  - {name: hardest, heads: 3}\ntargets"
    recipe = load_recipe(write("{share_simple: 0.5}", "[0.2, 0.6]", "\ntargets", third)).recipe
    assert recipe.router is not None
    assert recipe.router.threshold.fixed == (0.2, 0.6)
    assert refusal(write("{share_simple: 0.5}", "[0.6, 0.2]", "\ntargets", third)) == [
        "line 9: router.threshold: bounds must ascend"
    ]


def test_a_recipe_without_branches_is_refused(write: Write) -> None:
    lines = GOOD.splitlines()
    found = refusal(write("branches:\n" + lines[10] + "\n" + lines[11], "branches: []"))
    assert found == ["line 10: branches: at least one branch is needed"]


def test_a_key_that_stands_twice_is_refused(write: Write) -> None:
    assert refusal(write("name: good\n", "name: good\nname: better\n")) == ["line 3: name: stands twice"]


def test_all_problems_are_listed_at_once_in_the_order_of_their_lines(write: Write) -> None:
    path = write(
        "name: good", "name: GOOD", "patch: 8", "patch: eight", "dataset: shapes", "dataset: shape",
        "heads: 1}", "heds: 1}", "opset: 20", "opset: 3",
    )  # fmt: skip
    assert refusal(path) == [
        "line 2: name: 'GOOD' does not match [a-z0-9][a-z0-9_.-]*",
        "line 3: model.patch: must be a whole number, not 'eight'",
        "line 6: data.dataset: 'shape' is not one of cifar100, folder, shapes; did you mean 'shapes'?",
        "line 11: branches[0].heds: unknown key; did you mean 'heads'?",
        "line 11: branches[0].heads: is missing (heads kept in every block, the best by rank)",
        "line 13: targets.onnx.opset: 3 is too small; the least is 18",
    ]


def test_no_kind_of_problem_hides_another(write: Write) -> None:
    """An unknown key, a contradiction in the model, clashing names, a branch that does not fit and a missing router."""
    router = GOOD.splitlines()[8] + "\n"
    path = write(
        router, "", "dim: 24", "dim: 25", "classes: 100", "classes: 100, clases: 10", "keep: 0.4", "keep: 0.03",
        "name: complex", "name: simple", "heads: 3}\n", "heads: 5}\n",
    )  # fmt: skip
    assert refusal(path) == [
        "line 1: router: 2 branches need a router",
        "line 3: model.clases: unknown key; did you mean 'classes'?",
        "line 3: model.heads: 3 does not divide dim 25",
        "line 10: branches[0].prune[0].keep: 0.03 of 16 patch tokens leaves no token",
        "line 11: branches[1].name: 'simple' names two branches; choose another",
        "line 11: branches[1].heads: 5 heads are more than the model's 3",
    ]


def test_a_branch_that_cannot_be_read_does_not_hide_what_is_wrong_with_the_next(write: Write) -> None:
    assert refusal(write("heads: 1}", "heads: one}", "heads: 3}\n", "heads: 5}\n")) == [
        "line 11: branches[0].heads: must be a whole number, not 'one'",
        "line 12: branches[1].heads: 5 heads are more than the model's 3",
    ]


@pytest.mark.parametrize("key", [line.split(":")[0] for line in GOOD.splitlines() if line[0] not in " -"])
@pytest.mark.parametrize("value", ["", "3", "Text!", "[]", "[[1]]", "{}", "{a: 1}", "[{}]"])
def test_no_value_of_a_wrong_shape_escapes_as_anything_but_a_recipe_error(tmp_path: Path, key: str, value: str) -> None:
    rest = {k: v for k, v in yaml.safe_load(GOOD).items() if k != key}
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{key}: {value}\n" + yaml.safe_dump(rest, sort_keys=False))
    if key == "router" and value == "":  # null says the same as leaving it out
        assert refusal(path) == ["line 1: router: 2 branches need a router"]
    else:
        assert any(p.startswith("line 1: ") for p in refusal(path))


@pytest.mark.parametrize("path", SHIPPED, ids=[p.stem for p in SHIPPED])
def test_shipped_recipes_are_read_and_validate_against_the_json_schema(path: Path) -> None:
    assert isinstance(load_recipe(path).recipe, Recipe)
    Draft202012Validator(recipe_json_schema()).validate(yaml.safe_load(path.read_text()))


def test_recipes_are_shipped() -> None:
    assert {"quickstart", "micro_cifar100"} <= {p.stem for p in SHIPPED}


@pytest.mark.parametrize(
    "edits",
    [("name: good", "name: good\nunknown: 1"), ("keep: 0.4", "kep: 0.4"), ("keep: 0.4", "keep: 2"), ("name: good", "name: Not good")],
    ids=["unknown-key", "misspelt-key", "out-of-range", "bad-name"],
)  # fmt: skip
def test_the_json_schema_refuses_what_the_reader_refuses(write: Write, edits: tuple[str, str]) -> None:
    validator = Draft202012Validator(recipe_json_schema())
    Draft202012Validator.check_schema(recipe_json_schema())
    assert validator.is_valid(yaml.safe_load(GOOD))
    path = write(*edits)
    assert refusal(path)
    assert not validator.is_valid(yaml.safe_load(path.read_text()))


def test_a_recipe_of_two_targets_names_both_in_the_order_of_the_bundle(write: Write) -> None:
    targets = load_recipe(write("{onnx: {opset: 20}}", "{litert: {}, onnx: {precisions: [fp32]}}")).recipe.targets
    assert targets.names == ("onnx", "litert")
    assert targets.litert is not None and targets.onnx is not None
    assert (targets.litert.precisions, targets.onnx.precisions) == (("int8",), ("fp32",))
    assert (targets.litert.quantize.scheme, targets.litert.quantize.keep_float) == ("static_wi8_ai8", ())


def test_a_recipe_of_litert_alone_is_one(write: Write) -> None:
    assert load_recipe(write("{onnx: {opset: 20}}", "{litert: {}}")).recipe.targets.names == ("litert",)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("{}", "names no target; add onnx, litert or both"),
        ("{onnx: null}", "names no target; add onnx, litert or both"),
        ("{litert: {precisions: []}}", "targets.litert.precisions: must name int8, fp32 or both, each once"),
        ("{litert: {precisions: [int8, int8]}}", "targets.litert.precisions: must name int8, fp32 or both, each once"),
        ("{onnx: {precisions: [fp16]}}", "targets.onnx.precisions[0]: "),
        ("{litert: {opset: 20}}", "targets.litert.opset"),
        ("{litert: {quantize: {reduce_range: true}}}", "targets.litert.quantize.reduce_range"),
        ("{lite_rt: {}}", "litert"),
    ],
)
def test_a_target_that_says_nothing_or_too_much_is_refused(write: Write, targets: str, said: str) -> None:
    assert any(said in problem for problem in refusal(write("{onnx: {opset: 20}}", targets)))
