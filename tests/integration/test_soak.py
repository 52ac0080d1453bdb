"""The soak, for a short time: memory stays flat, and memory that does not is found out."""

from __future__ import annotations

import pytest
from soak import growth, soak

from tests.conftest import ROOT

OLD = ROOT / "tests/bundles/v1/tiny"


@pytest.mark.parametrize(("through", "images"), [("camera", 1500), ("watch", 400)])
def test_memory_stays_flat_while_images_come(through: str, images: int) -> None:
    found = soak(OLD, images, through, "onnx")
    assert found["whole"] and found["images"] == images
    assert found["flat"], found["megabytes"]


def test_a_leak_of_a_kilobyte_an_image_is_not_flat() -> None:
    leaking = [80.0 + 50_000 * 1e-3 * n / 200 for n in range(200)]
    grown, allowed = growth(leaking)
    assert grown > allowed
    steady = [80.0 + 0.5 * (n % 3) for n in range(200)]
    grown, allowed = growth(steady)
    assert grown <= allowed
    with pytest.raises(ValueError, match="too few"):
        growth([80.0] * 10)
