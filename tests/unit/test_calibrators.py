"""Choosing a calibrator and drawing other calibration images: the rules, apart from any graph."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from athe_export.calibrators import agreement_of, best_of, noise_of
from athe_export.data.calibration import disjoint_draws, make_calibration_set
from athe_export.data.shapes import Shapes
from athe_export.data.source import pixel_digest
from athe_export.errors import CalibrationError
from athe_export.held_out import ROUTER, HeldOut, Trial
from athe_export.preprocessing import Preprocessing
from athe_export.runtime.routing import RouterPolicy

PREPROCESSING = Preprocessing(32, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def tried(agreement: float, sqnr_db: float | None, images: int = 400) -> dict[str, Trial]:
    return {"simple": Trial(images, agreement, sqnr_db, 0)}


def test_of_calibrators_that_agree_alike_the_one_of_least_noise_is_taken() -> None:
    assert best_of({"a": tried(0.985, 20.0), "b": tried(0.98, 22.0), "c": tried(0.90, 30.0)}) == "b"


def test_agreement_decides_where_it_can_tell() -> None:
    assert best_of({"a": tried(0.985, 20.0), "b": tried(0.95, 25.0)}) == "a"
    assert best_of({"a": tried(1.0, 20.0), "b": tried(399 / 400, 25.0)}) == "a"  # of a perfect one there is no error


def test_a_graph_without_any_noise_is_best() -> None:
    assert best_of({"a": tried(1.0, 60.0), "b": tried(1.0, None)}) == "b"
    assert noise_of(tried(1.0, None)) is None


def test_branches_count_by_their_images_and_the_router_for_all() -> None:
    roles = {ROUTER: Trial(100, 0.9, 10.0, None), "a": Trial(75, 1.0, 20.0, 9), "b": Trial(25, 0.8, 40.0, 9)}
    assert agreement_of(roles) == pytest.approx(0.9 * 0.95)
    assert agreement_of({r: t for r, t in roles.items() if r != ROUTER}) == pytest.approx(0.95)
    assert noise_of(roles) == pytest.approx((100 * 10 + 75 * 20 + 25 * 40) / 200)


@pytest.fixture(scope="module")
def held() -> HeldOut:
    """Six images, the first two of the first branch; bound 0.5."""
    sources = tuple(Shapes().image("holdout", i) for i in range(6))
    routed, policy = np.array([0, 0, 1, 1, 1, 1]), RouterPolicy((0.5,))
    labels = np.array([0, 1, 2, 0, 1, 2])
    return HeldOut("holdout", np.arange(6), sources, labels, routed, ("a", "b"), policy, False, PREPROCESSING)


def test_a_branch_is_measured_on_its_own_images_and_labels(held: HeldOut) -> None:
    exact = np.eye(3, dtype=np.float32)[[2, 0, 1, 1]]
    found = exact.copy()
    found[3] = [0.0, 0.9, 1.0]  # right where the fp32 graph is wrong
    trial = held.compare("b", exact, found)
    assert (trial.images, trial.agreement, trial.correct, trial.top1) == (4, 0.75, 4, 1.0)
    assert trial.sqnr_db == pytest.approx(10 * np.log10(4 / (0.1**2 + 1)))
    assert len(list(held.pixels("b", 32))) == 4 and len(list(held.pixels(ROUTER, 32))) == 6


def test_a_router_agrees_where_it_sends_an_image_to_the_same_branch_by_bounds_of_its_own(held: HeldOut) -> None:
    exact = np.array([[0.1], [0.4], [0.6], [0.7], [0.8], [0.9]], np.float32)
    assert held.compare(ROUTER, exact, exact + 0.2).agreement == 1
    assert held.compare(ROUTER, exact, exact[[0, 2, 1, 3, 4, 5]]).agreement == pytest.approx(5 / 6)
    assert held.compare(ROUTER, exact, exact).top1 is None


def test_other_draws_share_no_image_with_the_set_with_one_another_or_with_what_is_to_be_avoided() -> None:
    shapes = Shapes()
    found = make_calibration_set(shapes, "train", 20, 0, "holdout")
    avoided = [shapes.image("train", i) for i in range(200)]
    draws = disjoint_draws(found, shapes, avoided, 3)
    pixels = [{pixel_digest(shapes.image("train", i)) for i in draw.ids} for draw in (found, *draws)]
    assert [len(p) for p in pixels] == [20] * 4
    assert not any(a & b for a, b in combinations(pixels, 2))
    assert not any(p & {pixel_digest(a) for a in avoided} for p in pixels[1:])
    assert draws == disjoint_draws(found, shapes, avoided, 3)
    assert all(d.ids_sha256 == hashlib.sha256(",".join(map(str, d.ids)).encode()).hexdigest() for d in draws)


class FewShapes(Shapes):
    """80 images a split."""

    def size(self, split: str) -> int:
        return 80

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        return super().labels(split)[:80]


def test_more_draws_than_there_are_images_are_refused() -> None:
    shapes = FewShapes()
    found = make_calibration_set(shapes, "train", 20, 0, "holdout")
    avoided = [shapes.image("train", i) for i in range(shapes.size("train") - 30)]
    with pytest.raises(CalibrationError, match="draws of 20 need 40") as caught:
        disjoint_draws(found, shapes, avoided, 2)
    assert caught.value.where == "parity.stability_draws"
