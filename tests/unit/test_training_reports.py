"""What training writes about itself: log, curves, progress and the figures of the final evaluation."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from athe_export.training.curves import draw_curves
from athe_export.training.log import Meter, TrainingLog, duration
from athe_export.training.metrics import _differences, _interval, _routings

PATHS = ("dense", "simple")


def row(phase: str, epoch: int, loss: float, **top1: float) -> dict[str, object]:
    return {"phase": phase, "epoch": epoch, "of": 3, "image_size": 32, "loss": loss, **top1}


def test_an_epoch_that_is_trained_again_after_a_kill_stands_in_the_log_once(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, PATHS)
    for entry in (row("dense", 1, 4.0, dense=0.1), row("dense", 2, 3.0, dense=0.2), row("dense", 2, 3.0, dense=0.2)):
        log.add(entry)
    log.add(row("adaptive", 2, 2.5, dense=0.3, simple=0.2))
    assert [(r["phase"], r["epoch"]) for r in log.rows()] == [("dense", "1"), ("dense", "2"), ("adaptive", "2")]
    assert log.rows()[0]["simple"] == ""


def test_curves_are_well_formed_and_have_a_line_for_each_path_that_was_measured(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, PATHS)
    log.add(row("dense", 1, 4.0, dense=0.1))
    log.add(row("dense", 2, 3.0, dense=0.2))
    log.add(row("adaptive", 1, 2.0, dense=0.3, simple=0.2))
    picture = ElementTree.parse(tmp_path / "curves.svg").getroot()
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4  # loss of two kinds, top-1 of two paths
    texts = [t.text for t in picture.findall("{http://www.w3.org/2000/svg}text")]
    assert "dense, % 30" in texts and "simple, % 20" in texts and "loss, adaptive 2" in texts


def test_curves_of_a_single_epoch_and_of_none_are_drawn_too() -> None:
    for rows in ([], [{"phase": "dense", "epoch": "1", "loss": "2.0", "dense": "0.5"}]):
        ElementTree.fromstring(draw_curves(rows, PATHS))


def test_progress_says_step_loss_speed_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("athe_export.training.log.time.monotonic", lambda: now[0])
    lines: list[str] = []
    shown: list[tuple[str, int, int]] = []
    meter = Meter("dense 2/5", 100, 300, lines.append, lambda *step: shown.append(step))
    for step in range(1, 5):
        now[0] += 10
        meter.step(step, 128, 3.25)
    assert lines == ["dense 2/5  step 4/100  loss 3.2500  13 images/s  1 h 06 min left in this phase"]
    assert shown[-1] == ("dense 2/5", 4, 100)


def test_durations_read_as_a_person_says_them() -> None:
    assert [duration(s) for s in (12, 200, 7500)] == ["12 s", "3 min", "2 h 05 min"]


# --- figures ----------------------------------------------------------------------------------------------------------

# simple, complex: both right, simple alone, complex alone, none
CORRECT = np.array([[1, 1]] * 4 + [[1, 0]] * 1 + [[0, 1]] * 3 + [[0, 0]] * 2, bool)


def test_oracle_and_random_bound_the_router() -> None:
    routed = np.array([0, 0, 0, 1, 1, 0, 1, 1, 0, 1])
    found = _routings(CORRECT, routed)
    assert found["routed"].mean() == pytest.approx(0.6)
    assert found["oracle"].mean() == pytest.approx(0.8)
    assert found["random"].mean() == pytest.approx(0.5 * 0.5 + 0.5 * 0.7)


def test_differences_are_paired_and_their_intervals_hold_them() -> None:
    right = {"simple": CORRECT[:, 0].astype(float), "complex": CORRECT[:, 1].astype(float), "dense": np.ones(10)}
    right |= _routings(CORRECT, np.zeros(10, np.int64))
    found = _differences(right, ["simple", "complex"])
    assert found["simple - dense"]["value"] == pytest.approx(-50)
    assert found["routed - complex"]["value"] == pytest.approx(-20)
    assert found["routed - random"]["value"] == 0  # all go to one branch: chance has nothing to decide
    for entry in found.values():
        low, high = entry["interval_95"]
        assert low <= entry["value"] <= high


def test_an_interval_narrows_with_more_images() -> None:
    few, many = _interval(CORRECT[:, 1]), _interval(np.tile(CORRECT[:, 1], 100))
    assert few[0] < many[0] < 0.7 < many[1] < few[1]
