"""What `tune` chooses, and what is remembered of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from athe_export.bench import tuned
from athe_export.bench.machine import Processor
from athe_export.bench.tune import Candidate, fastest, thread_counts
from athe_export.bench.tuned import Choice, all_remembered, recall, remember
from athe_export.bundle.reader import open_bundle
from athe_export.errors import EnvironmentFailure
from tests.tools import edit_manifest, write_bundle

HERE = Processor("a board", ("asimd",), 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "plain")
    return tmp_path / "plain"


def _choice(bundle: Path) -> Choice:
    return Choice("litert", "fp32", 2, "plain", open_bundle(bundle).digest, HERE.key)


@pytest.mark.parametrize(("cpus", "counts"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_thread_counts_double_up_to_all_cpus(cpus: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(cpus) == counts


def test_the_fastest_is_chosen_and_of_those_that_are_alike_the_one_with_the_fewest_threads() -> None:
    a, b, c = Candidate("litert", "int8", 4), Candidate("litert", "fp32", 2), Candidate("onnx", "int8", 2)
    assert fastest({a: 1.0, b: 1.1, c: 1.2}) == a
    assert fastest({a: 1.0, b: 1.02, c: 1.01}) == c


def test_a_choice_is_found_again_for_the_same_bundle_on_the_same_processor_alone(plain: Path, tmp_path: Path) -> None:
    bundle = open_bundle(plain)
    assert recall(bundle, HERE) == (None, None)
    remember(_choice(plain))
    assert recall(bundle, HERE) == (_choice(plain), None)
    assert recall(open_bundle(Path(shutil.copytree(plain, tmp_path / "copy"))), HERE)[0] == _choice(plain)
    for other in (
        Processor("another board", ("asimd",), 4),
        Processor("a board", ("asimd",), 2),
        Processor("a board", (), 4),
    ):
        assert recall(bundle, other) == (None, None)
    edit_manifest(plain, lambda m: m.update(name="built-again"))
    assert recall(open_bundle(plain), HERE) == (None, None)


def test_a_later_choice_takes_the_place_of_an_earlier_one(plain: Path) -> None:
    remember(_choice(plain))
    path = remember(Choice("onnx", "int8", 1, "plain", open_bundle(plain).digest, HERE.key))
    found, _ = recall(open_bundle(plain), HERE)
    assert found is not None and found.target == "onnx" and len(all_remembered()) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"target": "litert"}', None])
def test_a_memory_that_cannot_be_read_is_said_and_not_followed(plain: Path, content: str | None) -> None:
    path = remember(_choice(plain))
    path.write_text(path.read_text().replace('"threads": 2', '"threads": "2"') if content is None else content)
    found, note = recall(open_bundle(plain), HERE)
    assert found is None and note is not None and str(path) in note and "tune again" in note
    assert all_remembered() == ()


def test_a_cache_that_cannot_be_written_is_said_with_what_to_do(plain: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises(EnvironmentFailure) as caught:
        remember(_choice(plain))
    assert "XDG_CACHE_HOME" in caught.value.remedy and "--target" in caught.value.remedy


def test_without_platformdirs_nothing_is_remembered_and_run_needs_nothing(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert recall(open_bundle(plain), HERE) == (None, None) and tuned.all_remembered() == ()
