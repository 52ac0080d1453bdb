"""CIFAR-100 in its official layout: what is read, and what is refused before it is unpickled."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athe_export.data import open_dataset
from athe_export.data.cifar100 import FOLDER, MD5, Cifar100, _unpickle
from athe_export.data.location import holds_cifar100
from athe_export.errors import DatasetError
from athe_export.preprocessing import Preprocessing

ROWS = 200


def write_official(folder: Path) -> Path:
    """Files in the official layout, pickled as Python 2 did: row i has red i, green i + 1, blue 255 - i; label i % 100."""
    folder.mkdir(parents=True)
    row = np.arange(ROWS, dtype=np.uint8)
    data = np.stack([row, row + 1, 255 - row], 1).repeat(1024, axis=1)
    data[:, 1] = 77  # the second pixel of the first row, red
    for name in ("train", "test"):
        content = {b"data": data, b"fine_labels": [i % 100 for i in range(ROWS)], b"filenames": [b"x.png"] * ROWS}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [f"class {i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=2))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Cifar100:
    return Cifar100(write_official(tmp_path / FOLDER))


def test_a_set_is_whole_with_exactly_the_official_files(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for name in MD5:
        assert not holds_cifar100(tmp_path)
        (tmp_path / FOLDER / name).write_bytes(b"")
    assert holds_cifar100(tmp_path)


def refusal(root: Path) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        open_dataset("cifar100", root)
    assert caught.value.exit_code == 6
    assert "data root" in (caught.value.remedy or "")
    return caught.value


def test_the_planes_of_a_row_become_the_channels_of_the_image(small: Cifar100) -> None:
    image = small.image("test", 3)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert image[0, 1].tolist() == [77, 4, 252]
    assert image[1, 0].tolist() == [3, 4, 252]


def test_every_tenth_training_image_is_held_out_and_the_rest_is_trained_on(small: Cifar100) -> None:
    assert (small.size("train"), small.size("holdout"), small.size("test")) == (45_000, 5_000, 10_000)
    held = [int(small.image("holdout", i)[0, 0, 0]) for i in range(20)]
    rest = [int(small.image("train", i)[0, 0, 0]) for i in range(180)]
    assert held == list(range(9, ROWS, 10))
    assert sorted(held + rest) == list(range(ROWS))


def test_class_names_are_read_from_the_meta_file(small: Cifar100) -> None:
    assert small.class_names == tuple(f"class {i}" for i in range(100))


def test_a_missing_data_root_is_said(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent")
    assert error.what == "a CIFAR-100 file cannot be read: No such file or directory"
    assert error.where == str(tmp_path / "absent" / FOLDER / "train")


@pytest.mark.parametrize("name", MD5)
def test_a_file_other_than_the_official_one_is_refused_by_its_md5(tmp_path: Path, name: str) -> None:
    """`train` is looked at first; each of the others is met where those before it are the official ones."""
    write_official(tmp_path / FOLDER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("athe_export.data.cifar100.MD5", {name: MD5[name]})
        error = refusal(tmp_path)
    assert f"the official file's is {MD5[name]}: truncated or changed" in error.what
    assert error.where == str(tmp_path / FOLDER / name)


class Malicious:
    """Unpickled without restriction, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_malicious_pickle_is_refused_unread(tmp_path: Path) -> None:
    write_official(tmp_path / FOLDER)
    (tmp_path / FOLDER / "train").write_bytes(pickle.dumps({b"data": Malicious(tmp_path / "marker")}))
    assert "truncated or changed" in refusal(tmp_path).what
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_unpickler_makes_arrays_and_never_calls_anything_else(tmp_path: Path, protocol: int) -> None:
    path, marker = tmp_path / "file", tmp_path / "marker"
    path.write_bytes(pickle.dumps({b"data": Malicious(marker)}, protocol))
    with pytest.raises(pickle.UnpicklingError, match=r"refused .*\.mkdir"):
        _unpickle(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # the same bytes do it where nothing restricts them


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "numpy load", "numpy fromfile", "numpy.ctypeslib load_library", "codecs open", "_codecs decode"]
)  # fmt: skip
def test_no_other_name_is_found_by_the_unpickler(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        _unpickle(path)


def test_the_official_files_open_with_100_classes(cifar_root: Path) -> None:
    cifar = Cifar100.open(cifar_root)
    assert len(cifar.class_names) == 100
    assert (cifar.class_names[0], cifar.class_names[-1]) == ("apple", "worm")
    assert np.array_equal(np.bincount(cifar.labels("test")), np.full(100, 100))
    both = np.bincount(cifar.labels("train")) + np.bincount(cifar.labels("holdout"))
    assert np.array_equal(both, np.full(100, 500))
    assert cifar.class_names[cifar.labels("test")[0]] == "mountain"


def test_a_truncated_official_file_is_refused(cifar_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in ("train", "meta"):
        (folder / name).symlink_to((cifar_root / FOLDER / name).resolve())
    whole = (cifar_root / FOLDER / "test").read_bytes()
    (folder / "test").write_bytes(whole[:-1])
    error = refusal(tmp_path)
    assert error.where == str(folder / "test")
    assert "truncated" in error.what
    (folder / "test").write_bytes(whole)
    assert open_dataset("cifar100", tmp_path).size("test") == 10_000


def test_a_pass_at_224_pixels_holds_one_image_at_a_time(cifar_root: Path) -> None:
    """The set at 224 pixels would hold 6 GB as float32; here not even a hundredth of the pass is held."""
    cifar = Cifar100.open(cifar_root)
    preprocessing = Preprocessing(32, "bicubic", (0.5,) * 3, (0.25,) * 3)
    for split in cifar.splits:
        cifar.image(split, 0)
    tracemalloc.start()
    try:
        for index in range(300):
            preprocessing.tensor(preprocessing.source(cifar.image("test", index)), 224)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize("split", ["train", "holdout", "test"])
def test_taking_an_image_touches_that_image_alone(small: Cifar100, split: str) -> None:
    """So that a pass over a split costs what resizing costs: nothing of the split's length is made again."""
    small.image(split, 0)
    tracemalloc.start()
    try:
        small.image(split, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16_000  # one image is 3,072 bytes, a split's positions are 40,000 and more
