"""Opening a bundle fails closed: every file is as the manifest says, inside the bundle, or is named and refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from athe_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import staged_bundle
from athe_export.errors import BundleIntegrityError
from tests.tools import edit_manifest, fill, write_manifest

GRAPH = "onnx/only.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole bundle of plain bytes."""
    output = tmp_path / "bundle"
    with staged_bundle(output) as staged:
        fill(staged)
        staged.promote()
    return output


def _problems(folder: Path) -> dict[str, str]:
    """What `check` finds wrong."""
    with pytest.raises(BundleIntegrityError) as error:
        open_bundle(folder).check()
    assert error.value.where is not None and str(folder) in error.value.where
    for problem in error.value.files:
        assert problem.path in f"{error.value.what} {error.value.where}"
    return {f.path: f.problem for f in error.value.files}


def test_a_whole_bundle_opens_and_gives_its_files(folder: Path) -> None:
    bundle = open_bundle(folder)
    bundle.check()
    assert bundle.read("labels.txt") == b"a label\n"


def test_a_changed_file_of_the_same_size_is_named(folder: Path) -> None:
    (folder / GRAPH).write_bytes(b"grapf")
    assert _problems(folder) == {GRAPH: "changed"}


def test_a_truncated_file_is_named(folder: Path) -> None:
    (folder / GRAPH).write_bytes(b"gra")
    assert _problems(folder) == {GRAPH: "changed"}


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / GRAPH).unlink()
    assert _problems(folder) == {GRAPH: "missing"}


def test_an_extra_file_is_named_wherever_it_lies(folder: Path) -> None:
    (folder / "onnx" / "deep").mkdir()
    (folder / "onnx" / "deep" / "more.bin").write_bytes(b"")
    assert _problems(folder) == {"onnx/deep/more.bin": "extra"}


def test_an_extra_link_is_named_and_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert _problems(folder) == {"link": "extra"}


def test_all_problems_are_listed_at_once(folder: Path) -> None:
    (folder / GRAPH).unlink()
    (folder / "labels.txt").write_text("other\n")
    (folder / "more").write_text("")
    assert _problems(folder) == {GRAPH: "missing", "labels.txt": "changed", "more": "extra"}


def test_an_optional_file_may_be_missing(folder: Path) -> None:
    (folder / "reference.npz").unlink()
    open_bundle(folder).check()


def test_an_optional_file_may_not_be_changed(folder: Path) -> None:
    (folder / "reference.npz").write_bytes(b"arrayz")
    assert _problems(folder) == {"reference.npz": "changed"}


def test_a_damaged_file_is_never_handed_out(folder: Path) -> None:
    (folder / "labels.txt").write_text("a labex\n")
    with pytest.raises(BundleIntegrityError, match=r"changed: labels\.txt"):
        open_bundle(folder).read("labels.txt")


def test_a_file_that_is_not_listed_is_never_handed_out(folder: Path) -> None:
    with pytest.raises(BundleIntegrityError, match="not in the manifest"):
        open_bundle(folder).read(MANIFEST)


def test_a_pipe_in_a_files_place_is_named_and_not_waited_for(folder: Path) -> None:
    (folder / GRAPH).unlink()
    os.mkfifo(folder / GRAPH)
    assert _problems(folder) == {GRAPH: "changed"}


def test_a_folder_in_a_files_place_is_named(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").mkdir()
    assert _problems(folder) == {"labels.txt": "changed"}


@pytest.mark.parametrize("name", [MANIFEST, MANIFEST_DIGEST])
def test_a_missing_manifest_or_digest_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert _problems(folder) == {name: "missing"}


def test_a_manifest_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
    assert MANIFEST in _problems(folder)


@pytest.mark.parametrize("swap", [(b'"plain"', b'"other"'), (b"\n", b"\r\n"), (b"}\n", b"} \n")])
def test_a_manifest_changed_by_a_single_byte_is_refused(folder: Path, swap: tuple[bytes, bytes]) -> None:
    text = (folder / MANIFEST).read_bytes()
    assert swap[0] in text
    (folder / MANIFEST).write_bytes(text.replace(*swap))
    with pytest.raises(BundleIntegrityError, match=r"does not match manifest\.sha256") as error:
        open_bundle(folder)
    assert [(f.path, f.problem) for f in error.value.files] == [(MANIFEST, "changed")]


def test_a_truncated_manifest_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(text[: len(text) // 2])
    assert _problems(folder) == {MANIFEST: "changed"}


def test_an_empty_digest_is_refused(folder: Path) -> None:
    (folder / MANIFEST_DIGEST).write_text("")
    assert _problems(folder) == {MANIFEST: "changed"}


def test_a_manifest_of_an_unknown_schema_is_refused_though_its_digest_fits(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update(schema_version=2))
    with pytest.raises(BundleIntegrityError, match="schema_version 2"):
        open_bundle(folder)


def test_a_malformed_manifest_is_refused_though_its_digest_fits(folder: Path) -> None:
    write_manifest(folder, '{"schema_version": 1}')
    with pytest.raises(BundleIntegrityError, match=r"manifest\.name is missing"):
        open_bundle(folder)


def test_a_manifest_that_contradicts_itself_is_refused_though_its_digest_fits(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update(graphs=[]))
    with pytest.raises(BundleIntegrityError, match="there are no graphs"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "name",
    ["../labels.txt", "/etc/passwd", "onnx/../../labels.txt", "..", "C:labels.txt", "..\\labels.txt", "", "a\0b"],
)
def test_a_listed_path_that_leaves_the_bundle_is_refused(folder: Path, name: str) -> None:
    def point_outside(manifest: dict[str, Any]) -> None:
        manifest["files"][1]["path"] = name

    edit_manifest(folder, point_outside)
    with pytest.raises(BundleIntegrityError, match="leaves the bundle") as error:
        open_bundle(folder)
    assert "do not use" in error.value.remedy


def test_a_graph_path_that_leaves_the_bundle_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["graphs"][0].update(file="../only.onnx"))
    with pytest.raises(BundleIntegrityError, match="leaves the bundle"):
        open_bundle(folder)


def test_a_link_that_leads_out_of_the_bundle_is_refused_though_the_bytes_are_right(folder: Path, tmp_path: Path) -> None:
    (folder / "labels.txt").rename(tmp_path / "labels.txt")
    (folder / "labels.txt").symlink_to(tmp_path / "labels.txt")
    with pytest.raises(BundleIntegrityError, match="leaves the bundle"):
        open_bundle(folder)


def test_a_linked_folder_that_leads_out_of_the_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "onnx").rename(tmp_path / "onnx")
    (folder / "onnx").symlink_to(tmp_path / "onnx")
    with pytest.raises(BundleIntegrityError, match="leaves the bundle"):
        open_bundle(folder)


def test_a_manifest_that_is_a_link_out_of_the_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).rename(tmp_path / MANIFEST)
    (folder / MANIFEST).symlink_to(tmp_path / MANIFEST)
    with pytest.raises(BundleIntegrityError, match="leaves the bundle"):
        open_bundle(folder)


def test_a_loop_of_links_is_refused(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to("labels.txt")
    with pytest.raises(BundleIntegrityError):
        open_bundle(folder).check()


def test_a_bundle_reached_through_a_link_is_a_bundle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    open_bundle(tmp_path / "current").check()


def test_a_bundle_can_be_moved(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    moved = folder.rename(tmp_path / "far" / "other name")
    open_bundle(moved).check()


def test_a_place_without_a_bundle_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(BundleIntegrityError, match="no bundle here") as error:
            open_bundle(place)
        assert "manifest.json" in error.value.remedy
