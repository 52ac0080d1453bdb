"""Class folders of images as a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from athe_export.data import open_dataset
from athe_export.data.folder import ImageFolder
from athe_export.errors import DatasetError, RecipeError
from athe_export.recipe import load_recipe


def paint(path: Path, colour: str = "red", size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of two classes."""
    root = tmp_path / "images"
    for name, colour in (("train/dog/b.png", "red"), ("train/dog/a.png", "lime"), ("train/cat/z.jpg", "blue"),
                         ("test/cat/1.PNG", "blue"), ("test/dog/1.png", "white")):  # fmt: skip
        paint(root / name, colour)
    return root


def refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        ImageFolder(folder)
    assert caught.value.exit_code == 6
    assert caught.value.remedy
    return caught.value.what


def test_classes_are_the_sorted_folder_names_and_images_are_sorted_within(folder: Path) -> None:
    dataset = ImageFolder(folder)
    assert dataset.splits == ("test", "train")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels("train").tolist() == [0, 1, 1]
    assert (dataset.size("train"), dataset.size("test")) == (3, 2)
    assert (dataset.image("train", 1) == (0, 255, 0)).all()
    assert (dataset.image("train", 2) == (255, 0, 0)).all()


def test_images_keep_their_own_size(folder: Path) -> None:
    paint(folder / "train/cat/big.png", size=(40, 30))
    assert ImageFolder(folder).image("train", 0).shape == (30, 40, 3)


def test_hidden_files_and_folders_and_other_files_are_no_images(folder: Path) -> None:
    for name in ("train/cat/._z.jpg", "train/cat/notes.txt", "train/.cache/x.png", ".git/dog/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    dataset = ImageFolder(folder)
    assert dataset.splits == ("test", "train")
    assert dataset.size("train") == 3


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == "there is no image folder"


def test_a_file_or_an_empty_folder_is_no_dataset(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "there is no image folder"
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "file") == "there is no image folder"


def test_splits_with_different_classes_are_refused_with_the_odd_ones(folder: Path) -> None:
    paint(folder / "test/mouse/1.png")
    assert refusal(folder) == "split 'train' has other classes: mouse"


def test_a_split_without_images_is_refused(folder: Path) -> None:
    for path in (folder / "test").rglob("*.*"):
        path.unlink()
    assert refusal(folder) == "split 'test' has no images"


def test_a_split_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert refusal(tmp_path) == "split 'train' has no images"


def test_a_damaged_image_is_named_when_it_is_asked_for(folder: Path) -> None:
    (folder / "train/cat/z.jpg").write_bytes(b"no image")
    dataset = ImageFolder(folder)
    assert dataset.image("train", 1).shape == (9, 12, 3)
    with pytest.raises(DatasetError, match="an image of the dataset is not an image") as caught:
        dataset.image("train", 0)
    assert caught.value.where == str(folder / "train/cat/z.jpg")


def test_the_digest_follows_content_and_names_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = ImageFolder(folder).digest
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert ImageFolder(moved).digest == before
    (moved / "train/dog/a.png").rename(moved / "train/dog/c.png")
    renamed = ImageFolder(moved).digest
    paint(moved / "train/dog/c.png", "pink")
    assert len({before, renamed, ImageFolder(moved).digest}) == 3


def test_a_folder_dataset_is_opened_by_name(folder: Path) -> None:
    dataset = open_dataset("folder", folder=folder)
    assert dataset.name == "folder"
    assert np.array_equal(dataset.image("test", 0), ImageFolder(folder).image("test", 0))


def test_a_recipe_names_the_folder_relative_to_itself(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "schema: 1\nname: mine\n"
        "model: {arch: deit, image_size: 32, patch: 8, dim: 24, depth: 3, heads: 3, classes: 2}\n"
        "checkpoint: {random_seed: 0}\n"
        "data: {dataset: folder, path: images, preprocessing: {source_size: 32}, calibration: c.yaml}\n"
        "branches: [{name: plain, heads: 3}]\ntargets: {onnx: {}}\n"
    )
    file = load_recipe(recipe)
    assert file.recipe.data.path is not None
    assert ImageFolder(file.resolve(file.recipe.data.path)).class_names == ("cat", "dog")
    recipe.write_text(recipe.read_text().replace("path: images, ", ""))
    with pytest.raises(RecipeError, match="is needed with dataset: folder"):
        load_recipe(recipe)
