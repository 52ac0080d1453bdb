"""Graphs that share what they have in common: stored once, put together bit for bit, and refused where that fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from athe_export.bundle.manifest import Borrowed, GraphEntry
from athe_export.bundle.parts import MAGIC, Run, make_part, put_together
from athe_export.bundle.reader import open_bundle
from athe_export.errors import BundleIntegrityError
from athe_export.runtime.litert_session import LitertSession
from athe_export.runtime.onnx_session import OnnxSession
from athe_export.sharing import LEAST, as_whole, shared_runs
from athe_export.verify import verify_bundle
from tests.tools import edit_manifest, store_whole

RANDOM = np.random.default_rng(0)
LENDER = RANDOM.bytes(20_000)
OWN = RANDOM.bytes(1_000)
# what is cut out of a layer: rows of a matrix, and of each row of another a piece
ROWS = LENDER[1_003:5_000]
PIECES = b"".join(LENDER[9_000 + 192 * i : 9_064 + 192 * i] for i in range(50))
SHARING = [
    LENDER,
    OWN + LENDER,
    LENDER[:-1] + OWN,
    OWN[:77] + ROWS + OWN[77:100] + PIECES + OWN[100:],
    LENDER[10_000:] + LENDER[:10_000],
    bytes(5_000) + LENDER[:5_000],
]


def entry_of(bundle: Path, file: str) -> GraphEntry:
    return next(g for g in open_bundle(bundle).manifest.graphs if g.file == file)


@pytest.mark.parametrize("content", [*SHARING, OWN, b"", b"short", bytes(5_000)], ids=range(10))
@pytest.mark.parametrize("lender", [LENDER, bytes(3_000), b"", b"short"], ids=["random", "zeros", "empty", "short"])
def test_a_part_and_its_lender_make_the_graph_again(content: bytes, lender: bytes) -> None:
    runs = shared_runs(content, lender)
    assert put_together(make_part(content, runs), lender) == content
    assert all(run.length >= LEAST for run in runs)


def test_what_stands_in_the_lender_is_left_out_wherever_it_stands() -> None:
    own = [0, len(OWN), len(OWN), len(OWN), 0, 5_000]
    for content, least in zip(SHARING, own, strict=True):
        runs = shared_runs(content, LENDER)
        assert len(content) - sum(run.length for run in runs) <= least + 1
        assert len(runs) < 60


def test_of_a_layer_that_was_cut_what_is_left_is_found_row_by_row() -> None:
    assert sum(run.length for run in shared_runs(ROWS + OWN + PIECES, LENDER)) == len(ROWS) + len(PIECES)


@pytest.mark.parametrize(
    "part",
    [
        b"",
        MAGIC,
        MAGIC + bytes(3),
        LENDER,
        MAGIC + b"\xff\xff\xff\xff" + OWN,
        make_part(LENDER, [Run(0, 19_999, 2)]),
        make_part(OWN, [Run(100, 0, 100), Run(150, 0, 100)]),
        make_part(OWN, [Run(5_000, 0, 100)]),
    ],
    ids=["empty", "magic", "no count", "no part", "cut off", "beyond the lender", "overlap", "beyond itself"],
)
def test_bytes_that_are_no_part_of_this_lender_are_refused(part: bytes) -> None:
    with pytest.raises(ValueError, match=r"part|cut off|leave the files"):
        put_together(part, LENDER)


def test_a_branch_is_stored_as_what_the_hardest_one_has_not(built_both: Path) -> None:
    manifest = open_bundle(built_both).manifest
    for target, precision in manifest.systems:
        graphs = manifest.graphs_of(target, precision)
        assert graphs["complex"].borrows is None and graphs["router"].borrows is None
        simple = graphs["simple"]
        assert simple.borrows is not None and simple.borrows.file == graphs["complex"].file
        assert simple.bytes < 0.5 * simple.whole_bytes
        assert manifest.stored_bytes(graphs.values()) == sum(g.bytes for g in graphs.values())


def test_a_bundle_answers_as_one_that_stores_every_graph_whole(bundle_both: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_both, tmp_path / "whole")
    store_whole(tmp_path / "whole")
    for path in (bundle_both, tmp_path / "whole"):
        assert all(g.bit_equal for g in verify_bundle(path).golden)
    shared, whole = open_bundle(bundle_both), open_bundle(tmp_path / "whole")
    for one, other in zip(shared.manifest.graphs, whole.manifest.graphs, strict=True):
        assert as_whole(one) == as_whole(other) == other
        assert shared.graph(one) == whole.graph(other)


@pytest.mark.parametrize("name", ["onnx/simple.int8.part.onnx", "litert/simple.int8.part.tflite"])
def test_no_engine_takes_a_part_for_a_graph(built_both: Path, name: str) -> None:
    """As an athe-export would give it one that does not know parts."""
    engine = OnnxSession if name.startswith("onnx") else LitertSession
    with pytest.raises(BundleIntegrityError, match="cannot load the graph"):
        engine(open_bundle(built_both).read(name))


@pytest.mark.parametrize("damaged", ["litert/simple.int8.part.tflite", "litert/complex.int8.tflite"])
def test_the_file_that_makes_another_graph_is_named(bundle_both: Path, damaged: str) -> None:
    content = bytearray((bundle_both / damaged).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2_000] = OWN + OWN
    (bundle_both / damaged).write_bytes(content[: (bundle_both / damaged).stat().st_size])
    bundle = open_bundle(bundle_both)
    with pytest.raises(BundleIntegrityError) as error:
        bundle.graph(entry_of(bundle_both, "litert/simple.int8.part.tflite"))
    assert [(f.path, f.problem) for f in error.value.files] == [(damaged, "changed")]


def test_graphs_that_are_read_together_are_those_that_are_read_one_by_one(built_both: Path) -> None:
    bundle = open_bundle(built_both)
    for entries in (bundle.manifest.graphs, bundle.manifest.graphs[::-1], [g for g in bundle.manifest.graphs if g.borrows]):
        assert bundle.graphs(entries) == [bundle.graph(g) for g in entries]


@pytest.mark.parametrize("place", [0, 8, 12, -1], ids=["magic", "count", "run", "end"])
@pytest.mark.parametrize("damaged", ["litert/simple.int8.part.tflite", "litert/complex.int8.tflite"])
def test_no_graph_is_given_of_files_that_are_read_together_if_one_was_changed(
    bundle_both: Path, damaged: str, place: int
) -> None:
    content = bytearray((bundle_both / damaged).read_bytes())
    content[place] ^= 0xFF
    (bundle_both / damaged).write_bytes(content)
    bundle = open_bundle(bundle_both)
    with pytest.raises(BundleIntegrityError) as error:
        bundle.graphs([g for g in bundle.manifest.graphs if (g.target, g.precision) == ("litert", "int8")])
    assert [(f.path, f.problem) for f in error.value.files] == [(damaged, "changed")]


def test_a_graph_whose_lender_is_missing_says_which_file_it_lacks(bundle_both: Path) -> None:
    (bundle_both / "onnx/complex.int8.onnx").unlink()
    with pytest.raises(BundleIntegrityError, match=r"missing: onnx/complex\.int8\.onnx"):
        open_bundle(bundle_both).graph(entry_of(bundle_both, "onnx/simple.int8.part.onnx"))


def test_parts_that_make_another_graph_than_the_manifest_says_are_refused_though_each_file_is_right(bundle: Path) -> None:
    name = "onnx/simple.int8.part.onnx"
    changed = entry_of(bundle, name).borrows
    assert changed is not None
    other = Borrowed(changed.file, changed.bytes, "0" * 64)
    edit_manifest(bundle, lambda m: next(g for g in m["graphs"] if g["file"] == name).update(borrows=other._asdict()))
    with pytest.raises(BundleIntegrityError, match="do not make the graph in the manifest"):
        open_bundle(bundle).graph(entry_of(bundle, name))
    other = other._replace(bytes=changed.bytes + 1)
    edit_manifest(bundle, lambda m: next(g for g in m["graphs"] if g["file"] == name).update(borrows=other._asdict()))
    with pytest.raises(BundleIntegrityError, match="do not make the graph in the manifest"):
        open_bundle(bundle).graphs(open_bundle(bundle).manifest.graphs)
