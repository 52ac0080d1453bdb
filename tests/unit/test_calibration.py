"""Calibration sets: a set that is not exactly what it says, or that shares images with the gate, is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from athe_export.data.calibration import (
    LEAST_PER_BRANCH,
    CalibrationSet,
    check_calibration_set,
    ids_digest,
    make_calibration_set,
    read_calibration_set,
    split_by_branch,
)
from athe_export.data.cifar100 import Cifar100
from athe_export.data.folder import ImageFolder
from athe_export.data.shapes import Shapes
from athe_export.data.source import Dataset, pixel_digest
from athe_export.errors import CalibrationError

SHIPPED = Path(__file__).parent.parent.parent / "calibration"
GATE = 30  # images of the gate, few since each is drawn


def set_of(dataset: Dataset, split: str, ids: Sequence[int]) -> CalibrationSet:
    """A set whose digests are right."""
    digests = "".join(pixel_digest(dataset.image(split, i)) for i in ids)
    pixels = hashlib.sha256(digests.encode()).hexdigest()
    return CalibrationSet(1, dataset.name, split, tuple(ids), ids_digest(tuple(ids)), pixels)


def refusal(found: CalibrationSet, dataset: Dataset, gate_split: str = "test", gate_size: int = GATE) -> list[str]:
    """The problems that the set is refused for."""
    with pytest.raises(CalibrationError) as caught:
        check_calibration_set(found, Path("set.yaml"), dataset, gate_split, gate_size)
    assert caught.value.exit_code == 2
    assert caught.value.where == "set.yaml"
    first, *problems = caught.value.what.splitlines()
    assert first == "the calibration set is refused:"
    return [p.strip() for p in problems]


@pytest.fixture(scope="module")
def good() -> CalibrationSet:
    return set_of(Shapes(), "train", (3, 17, 400))


def with_ids(good: CalibrationSet, *ids: int) -> CalibrationSet:
    return dataclasses.replace(good, ids=ids, ids_sha256=ids_digest(ids))


def test_a_set_that_is_what_it_says_is_accepted(good: CalibrationSet) -> None:
    check_calibration_set(good, Path("set.yaml"), Shapes(), "test", GATE)


def test_a_set_of_another_dataset_is_refused(good: CalibrationSet) -> None:
    found = dataclasses.replace(good, dataset="cifar100")
    assert refusal(found, Shapes()) == ["is for dataset 'cifar100', the recipe uses 'shapes'"]


def test_a_set_of_a_split_that_is_not_there_is_refused(good: CalibrationSet) -> None:
    assert refusal(dataclasses.replace(good, split="validation"), Shapes()) == ["shapes has no split 'validation'"]


def test_a_set_without_ids_is_refused(good: CalibrationSet) -> None:
    assert refusal(with_ids(good), Shapes()) == ["holds no ids"]


def test_duplicates_are_refused_by_id(good: CalibrationSet) -> None:
    assert refusal(with_ids(good, 3, 17, 3, 400, 17), Shapes()) == ["ids stand twice: 3, 17"]


@pytest.mark.parametrize("far", [30_000, 10**30])
def test_ids_out_of_range_are_refused_by_id(good: CalibrationSet, far: int) -> None:
    assert refusal(with_ids(good, 3, 29_999, far), Shapes()) == [f"ids out of range, train has 30000 images: {far}"]


def test_of_very_many_wrong_ids_the_first_ten_are_listed(good: CalibrationSet) -> None:
    found = refusal(with_ids(good, *range(30_000, 30_025)), Shapes())
    assert found[0].endswith("30008, 30009 and 15 more")


def test_ids_that_do_not_match_their_digest_are_refused(good: CalibrationSet) -> None:
    found = dataclasses.replace(good, ids=(3, 17, 401))
    assert refusal(found, Shapes()) == [f"ids_sha256 does not match the ids, which give {ids_digest((3, 17, 401))}"]


def test_all_problems_of_the_ids_are_said_at_once(good: CalibrationSet) -> None:
    problems = refusal(dataclasses.replace(good, ids=(3, 3, 40_000)), Shapes())
    assert [p.split(":")[0].split(",")[0] for p in problems] == [
        "ids stand twice",
        "ids out of range",
        "ids_sha256 does not match the ids",
    ]


def test_images_that_do_not_match_their_digest_are_refused(good: CalibrationSet) -> None:
    found = dataclasses.replace(good, pixels_sha256="0" * 64)
    assert refusal(found, Shapes()) == [f"pixels_sha256 does not match the images, which give {good.pixels_sha256}"]


def test_ids_of_the_gates_own_images_are_refused() -> None:
    found = set_of(Shapes(), "test", (5, GATE - 1, GATE, 5000))
    assert refusal(found, Shapes()) == [f"ids overlap the parity gate's split 'test': 5, {GATE - 1}"]


def test_ids_of_the_gates_split_beyond_its_limit_are_no_overlap() -> None:
    check_calibration_set(set_of(Shapes(), "test", (GATE, 5000)), Path("set.yaml"), Shapes(), "test", GATE)


@pytest.fixture
def twins(tmp_path: Path) -> ImageFolder:
    """Five training images, of which the third also stands in the test split, as its second."""
    for split, seeds in (("train", (0, 1, 2, 3, 4)), ("test", (9, 2, 8))):
        for position, seed in enumerate(seeds):
            path = tmp_path / split / "only" / f"{position}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.RandomState(seed).randint(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    return ImageFolder(tmp_path)


def test_an_image_whose_pixels_stand_in_the_gate_is_refused_by_id(twins: ImageFolder) -> None:
    problems = refusal(set_of(twins, "train", (0, 2, 4)), twins, gate_size=3)
    assert problems == ["images of these ids also stand in the parity gate's split: 2"]


def test_a_twin_beyond_the_gates_limit_is_no_overlap(twins: ImageFolder) -> None:
    check_calibration_set(set_of(twins, "train", (0, 2, 4)), Path("set.yaml"), twins, "test", 1)


def test_a_new_set_passes_over_images_that_stand_in_the_other_split(twins: ImageFolder) -> None:
    made = make_calibration_set(twins, "train", 4, 0, "test")
    assert made.ids == (0, 1, 3, 4)
    check_calibration_set(made, Path("set.yaml"), twins, "test", 3)


def test_a_new_set_passes_over_images_that_it_already_holds(twins: ImageFolder) -> None:
    (twins.folder / "train/only/1.png").write_bytes((twins.folder / "train/only/0.png").read_bytes())
    made = make_calibration_set(twins, "train", 3, 0, "test")
    assert len(set(made.ids) & {0, 1}) == 1


@pytest.mark.parametrize("count", [0, 5, 100])
def test_a_new_set_of_a_size_that_the_split_cannot_give_is_refused(twins: ImageFolder, count: int) -> None:
    with pytest.raises(CalibrationError, match=f"{count} were asked for"):
        make_calibration_set(twins, "train", count, 0, "test")


def test_a_new_set_is_the_same_for_the_same_seed(twins: ImageFolder) -> None:
    drawn = [make_calibration_set(twins, "train", 2, seed, "test") for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({d.ids for d in drawn}) > 1


def test_a_set_survives_its_file(twins: ImageFolder, tmp_path: Path) -> None:
    made = make_calibration_set(twins, "train", 4, 0, "test")
    path = tmp_path / "set.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(made) | {"ids": list(made.ids)}))
    assert read_calibration_set(path) == made


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "the calibration set cannot be read: No such file or directory"),
        (b"\xff\xfe\x00", "the calibration set cannot be read: not text"),
        (b"", "line 1: the document is empty"),
        (b"ids: [1, x]", "line 1: ids[1]: must be a whole number, not 'x'"),
        (b"ids: [-1]", "line 1: ids[0]: -1 is too small; the least is 0"),
        (b"idz: [1]", "line 1: idz: unknown key; did you mean 'ids'?"),
        (b"schema: 9", "line 1: schema: '9' is not one of 1"),
        (b"ids_sha256: abc", "line 1: ids_sha256: 'abc' does not match [0-9a-f]{64}"),
    ],
    ids=["missing", "binary", "empty", "not-a-number", "negative", "unknown-key", "schema", "digest"],
)
def test_a_file_that_is_no_set_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "set.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        read_calibration_set(path)
    assert said in [line.strip() for line in caught.value.what.splitlines()]
    assert caught.value.where == str(path)


Share = tuple[tuple[int, ...], tuple[int, ...]]


def shares(routed: Sequence[int], branches: tuple[str, ...] = ("simple", "complex")) -> list[Share]:
    """Positions and topped-up ids per branch, for scores that rise with the position; ids are positions + 1000."""
    found = CalibrationSet(1, "shapes", "train", tuple(range(1000, 1000 + len(routed))), "", "")
    scores = np.linspace(0, 1, len(routed), dtype=np.float32)
    split = split_by_branch(found, scores, np.array(routed, np.int64), branches, Path("set.yaml"))
    return [(s.positions, s.topped_up) for s in split]


def test_a_branch_is_calibrated_on_the_images_that_the_router_sends_to_it() -> None:
    routed = [0] * 40 + [1] * 50
    assert shares(routed) == [(tuple(range(40)), ()), (tuple(range(40, 90)), ())]


def test_a_branch_with_too_few_images_is_topped_up_with_the_nearest_by_score_and_they_are_named() -> None:
    (simple, named), (_, none) = shares([0] * 30 + [1] * 60)
    assert simple == tuple(range(LEAST_PER_BRANCH))
    assert named == (1030, 1031)
    assert none == ()


def test_a_small_set_tops_up_with_everything_there_is() -> None:
    (simple, named), (_, others) = shares([0, 0, 1])
    assert (simple, named) == ((0, 1, 2), (1002,))
    assert others == (1001, 1000)


def test_a_branch_that_the_router_sends_nothing_to_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match="the router sends no calibration image to branch 'middle'") as caught:
        shares([0] * 40 + [2] * 40, ("simple", "middle", "complex"))
    assert caught.value.exit_code == 2
    assert "router.threshold" in (caught.value.remedy or "")


def test_the_shipped_set_of_shapes_is_what_it_says() -> None:
    path = SHIPPED / "shapes_256.yaml"
    found = read_calibration_set(path)
    check_calibration_set(found, path, Shapes(), "test", 500)
    assert len(found.ids) == 256


def test_the_shipped_set_of_cifar100_shares_nothing_with_the_whole_test_split(cifar_root: Path) -> None:
    path = SHIPPED / "cifar100_512.yaml"
    found = read_calibration_set(path)
    check_calibration_set(found, path, Cifar100.open(cifar_root), "test", 10_000)
    assert len(found.ids) == 512


def test_the_official_images_that_stand_in_both_splits_are_refused(cifar_root: Path) -> None:
    """CIFAR-100 holds ten images in training and test set alike; two of them are held out here."""
    cifar = Cifar100.open(cifar_root)
    test = {pixel_digest(cifar.image("test", i)) for i in range(10_000)}
    twins = {s: [i for i in range(cifar.size(s)) if pixel_digest(cifar.image(s, i)) in test] for s in ("train", "holdout")}
    assert (len(twins["train"]), len(twins["holdout"])) == (8, 2)
    listed = ", ".join(map(str, twins["train"]))
    clean = [i for i in range(20) if i not in twins["train"]]
    problems = refusal(set_of(cifar, "train", [*clean, *twins["train"]]), cifar, gate_size=10_000)
    assert problems == [f"images of these ids also stand in the parity gate's split: {listed}"]
    check_calibration_set(set_of(cifar, "train", clean), Path("set.yaml"), cifar, "test", 10_000)
