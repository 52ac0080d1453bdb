"""The soak, for a short time: memory stays flat, and memory that does not is found out."""

from __future__ import annotations

import pytest
from soak import growth, soak

from tests.conftest import ROOT

OLD = ROOT / "tests/bundles/v1/tiny"


@pytest.mark.parametrize(("through", "images"), [("camera", 1500), ("watch", 1500)])
def test_memory_stays_flat_while_images_come(through: str, images: int) -> None:
    found = soak(OLD, images, through, "onnx")
    assert found["whole"] and found["images"] == images
    assert found["flat"], found["megabytes"]


@pytest.mark.parametrize("images", [1500, 50_000])
def test_a_leak_of_a_kilobyte_an_image_is_not_flat(images: int) -> None:
    leaking = [80.0 + images * 1e-3 * n / 200 for n in range(200)]
    grown, allowed = growth(leaking, images)
    assert grown > allowed
    steady = [80.0 + 0.4 * (n % 3) for n in range(200)]
    grown, allowed = growth(steady, images)
    assert grown <= allowed


def test_a_soak_that_is_too_short_to_tell_says_so() -> None:
    with pytest.raises(ValueError, match="too few"):
        growth([80.0] * 10, 10)
