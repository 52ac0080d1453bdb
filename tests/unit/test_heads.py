"""Head importance by attention entropy."""

from __future__ import annotations

import pytest
import torch

from athe_export.model.deit import DeiT
from athe_export.model.heads import head_importance, rank_heads
from athe_export.recipe import ModelSpec

SPEC = ModelSpec("deit", image_size=32, patch=8, dim=24, depth=2, heads=3, classes=10)


@pytest.fixture
def backbone() -> DeiT:
    model = DeiT(SPEC)
    model.initialise(0)
    return model.eval()


def test_a_head_that_averages_all_tokens_has_importance_zero_and_a_sharp_one_ranks_first(backbone: DeiT) -> None:
    with torch.no_grad():
        attention = backbone.blocks[0].attn
        attention.qkv.weight[:8] = 0  # head 0: queries of zero attend evenly
        attention.qkv.weight[8:16] *= 200  # head 1: very sharp
        attention.qkv.weight[32:40] *= 200
    importance = head_importance(backbone, [torch.randn(4, 3, 32, 32)])
    assert importance.shape == (2, 3)
    assert float(importance[0, 0]) == pytest.approx(0, abs=1e-6)
    assert float(importance.min()) >= -1e-6 and float(importance.max()) <= 1
    assert rank_heads(importance)[0][0] == 1 and rank_heads(importance)[0][-1] == 0


def test_importance_does_not_depend_on_how_images_are_batched(backbone: DeiT) -> None:
    images = torch.randn(6, 3, 32, 32)
    torch.testing.assert_close(head_importance(backbone, [images]), head_importance(backbone, images.split(2)))


def test_no_images_is_an_error(backbone: DeiT) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        head_importance(backbone, [])
