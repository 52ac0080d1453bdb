"""CIFAR-100 as one file or parts: the same dataset as the official files, or an error that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from athe_export.data.cifar100 import FOLDER, Cifar100
from athe_export.data.location import PACKED, packed_files
from athe_export.data.packed import (
    CONTENT_SHA256,
    content_sha256,
    open_packed,
    pack,
    split_into_parts,
)
from athe_export.data.source import open_dataset
from athe_export.errors import DatasetError
from tests.unit.test_cifar100 import write_official


@pytest.fixture
def small(tmp_path: Path) -> Cifar100:
    """200 rows in each official file, some of them noise, which no prediction fits."""
    dataset = Cifar100(write_official(tmp_path / FOLDER))
    dataset._train[0][100:] = np.random.default_rng(0).integers(0, 256, (100, 3072), np.uint8)
    return dataset


def write_parts(folder: Path, content: bytes, limit: int) -> list[Path]:
    folder.mkdir()
    parts = split_into_parts(content, limit)
    files = [folder / f"{PACKED}.{n}of{len(parts)}" for n in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        file.write_bytes(part)
    return files


def test_every_image_label_and_name_comes_back(small: Cifar100, tmp_path: Path) -> None:
    (tmp_path / PACKED).write_bytes(pack(small))
    opened = open_packed((tmp_path / PACKED,), content_sha256(small))
    assert opened.class_names == small.class_names and opened.digest == small.digest
    for ours, theirs in ((opened._train, small._train), (opened._test, small._test)):
        assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])
    assert np.array_equal(opened.image("holdout", 5), small.image("holdout", 5))


def test_parts_are_small_enough_and_are_the_file_together(small: Cifar100, tmp_path: Path) -> None:
    content = pack(small)
    files = write_parts(tmp_path / "parts", content, 100_000)
    assert len(files) > 2 and all(f.stat().st_size <= 100_000 for f in files)
    assert b"".join(f.read_bytes() for f in files) == content
    found = packed_files(tmp_path / "parts")
    assert found == tuple(files)
    assert packed_files(files[1]) == found and packed_files(tmp_path / "parts" / PACKED) == found
    assert np.array_equal(open_packed(found, content_sha256(small)).image("train", 120), small.image("train", 120))


def test_a_root_without_a_packed_file_is_left_to_the_official_files(small: Cifar100, tmp_path: Path) -> None:
    assert packed_files(tmp_path) == ()
    assert packed_files(tmp_path / "absent") == ()


def test_missing_parts_are_named(small: Cifar100, tmp_path: Path) -> None:
    files = write_parts(tmp_path / "parts", pack(small), 100_000)
    files[1].unlink()
    with pytest.raises(DatasetError, match=rf"missing: {PACKED}\.2of{len(files)}$"):
        open_dataset("cifar100", tmp_path / "parts")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another file", "other content"])
def test_what_is_not_the_known_content_is_refused(damage: str, small: Cifar100, tmp_path: Path) -> None:
    content = pack(small)
    flipped = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    stored = {"truncated": content[:-500], "flipped": flipped, "another file": b"PK" + content}.get(damage, content)
    (tmp_path / PACKED).write_bytes(stored)
    with pytest.raises(DatasetError) as caught:
        open_packed((tmp_path / PACKED,)) if damage == "other content" else open_packed(
            (tmp_path / PACKED,), content_sha256(small)
        )
    assert "scripts/pack_training_data.py" in caught.value.remedy


def test_the_known_digest_is_that_of_the_official_files(cifar_root: Path) -> None:
    assert content_sha256(Cifar100.open(cifar_root)) == CONTENT_SHA256
