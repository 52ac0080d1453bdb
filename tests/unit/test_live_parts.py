"""The parts of live use on a clock that the tests turn: when to stop, and when a file in a folder is ready."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from athe_export.errors import EnvironmentFailure, ImageError
from athe_export.live.folder import WatchedFolder
from athe_export.live.stream import Ended, Item, Stop, Summary, classify_live
from athe_export.preprocessing import Pixels
from athe_export.runtime.predictor import Prediction


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Named:
    """Answers with what the image is called; broken ones it cannot read."""

    def predict(self, image: Path | str | Pixels, branch: str = "auto", top: int = 5) -> Prediction:
        if "broken" in str(image):
            raise ImageError("cannot be decoded", where=str(image))
        return Prediction(str(image), 1.0, "simple", None, 2.0, ())


class Listed:
    """A source of these items, then of its end."""

    skipped = 3

    def __init__(self, *names: str | None, end: BaseException | None = None) -> None:
        self._names, self._end = list(names), end or Ended()

    def next(self, wait_s: float) -> Item | None:
        if not self._names:
            raise self._end
        name = self._names.pop(0)
        return None if name is None else Item(name, Path(name))

    def refused(self, item: Item) -> bool:
        return "again" not in item.name

    def close(self) -> None:
        pass


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_everything_is_told_and_counted_and_what_comes_again_is_not_broken() -> None:
    told: list[str] = []
    source = Listed("a", None, "broken", "broken again", "b")
    found = classify_live(Named(), source, Stop(), lambda item, answer: told.append(item.name))
    assert told == ["a", "broken", "b"]
    assert (found.images, found.broken, found.skipped, found.ended) == (2, 1, 3, "end")
    assert found.to_json()["mean_ms"] == 2.0 and found.by_branch == {"simple": 2}


def test_a_source_that_fails_leaves_what_was_counted() -> None:
    summary = Summary()
    with pytest.raises(EnvironmentFailure):
        source = Listed("a", end=EnvironmentFailure("gone"))
        classify_live(Named(), source, Stop(), lambda item, answer: None, summary=summary)
    assert summary.images == 1 and summary.skipped == 3


def test_a_duration_runs_from_the_begin_of_the_loop() -> None:
    clock = Clock()
    stop = Stop(2.0, clock)
    clock.now = 10.0
    stop.begin()
    assert stop.why is None and stop.wait_s() == pytest.approx(0.2)
    clock.now = 11.9
    assert stop.why is None and stop.wait_s() == pytest.approx(0.1)
    clock.now = 12.0
    assert stop.why == "duration"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_asks_and_the_second_insists(number: signal.Signals) -> None:
    before, stop = signal.getsignal(number), Stop()
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.why == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


# --- the folder -------------------------------------------------------------------------------------------------------


def watched(folder: Path) -> tuple[WatchedFolder, Clock]:
    clock = Clock()
    return WatchedFolder(folder, clock, clock.sleep), clock


def test_a_file_is_given_once_when_two_looks_find_it_alike(tmp_path: Path) -> None:
    folder, clock = watched(tmp_path)
    (tmp_path / "a").write_text("1")
    item = folder.next(1.0)
    assert item is not None and item.name == str(tmp_path / "a") and clock.now == pytest.approx(0.1)
    assert folder.next(1.0) is None and clock.now == pytest.approx(1.1)


def test_a_file_that_cannot_be_read_is_tried_when_it_changes_and_given_up_when_it_does_not(tmp_path: Path) -> None:
    folder, clock = watched(tmp_path)
    (tmp_path / "a").write_text("half")
    assert (item := folder.next(1.0)) is not None and not folder.refused(item)
    assert folder.next(1.0) is None  # the same half is not tried again
    (tmp_path / "a").write_text("a half and more")
    begun = clock.now
    assert (item := folder.next(1.0)) is not None and not folder.refused(item)
    assert (item := folder.next(5.0)) is not None and clock.now - begun >= 2.0
    assert folder.refused(item)  # nothing has changed for two seconds
    assert folder.next(5.0) is None
    (tmp_path / "a").write_text("and yet it has")
    assert folder.next(1.0) is not None


def test_files_that_were_there_hidden_ones_and_folders_are_left_alone_until_they_change(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    folder, _ = watched(tmp_path)
    (tmp_path / ".hidden").write_text("1")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert folder.next(1.0) is None and folder.there_before == 1
    (tmp_path / "old").write_text("newer")
    assert (item := folder.next(1.0)) is not None and item.name.endswith("old")


def test_the_oldest_comes_first_and_what_has_gone_is_forgotten(tmp_path: Path) -> None:
    folder, _ = watched(tmp_path)
    for age, name in enumerate("cab"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert (item := folder.next(1.0)) is not None and item.name.endswith("c")
    (tmp_path / "a").unlink()
    assert (item := folder.next(1.0)) is not None and item.name.endswith("b")
    for path in tmp_path.iterdir():
        path.unlink()
    assert folder.next(1.0) is None and not folder._files
