"""The backbone against an independent forward pass, and the properties pruning and head cutting must have."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from athe_export.model.deit import DeiT
from athe_export.model.scorers import LinearScorer
from athe_export.model.tokens import PruneStage, choose_tokens, straight_through_bias
from athe_export.recipe import ModelSpec

SPEC = ModelSpec("deit", image_size=32, patch=8, dim=24, depth=3, heads=3, classes=10)


@pytest.fixture
def backbone() -> DeiT:
    model = DeiT(SPEC)
    model.initialise(0)
    with torch.no_grad():  # larger than at initialisation, so that every term shows in the output
        for parameter in model.parameters():
            parameter.mul_(4).add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def images(count: int = 4, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def reference_forward(state: dict[str, Tensor], image: Tensor, heads: int) -> Tensor:
    """A ViT written from its definition over timm's parameter names, one image at a time."""
    rows = []
    for single in image:
        patches = F.conv2d(single[None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
        x = torch.cat([state["cls_token"][0], patches[0].flatten(1).T]) + state["pos_embed"][0]
        for block in range(3):
            p = f"blocks.{block}."
            y = F.layer_norm(x, (24,), state[p + "norm1.weight"], state[p + "norm1.bias"], 1e-6)
            qkv = y @ state[p + "attn.qkv.weight"].T + state[p + "attn.qkv.bias"]
            q, k, v = qkv.split(24, 1)
            mixed = []
            for h in range(heads):
                own = slice(h * 24 // heads, (h + 1) * 24 // heads)
                weights = (q[:, own] @ k[:, own].T / math.sqrt(24 // heads)).softmax(-1)
                mixed.append(weights @ v[:, own])
            x = x + torch.cat(mixed, 1) @ state[p + "attn.proj.weight"].T + state[p + "attn.proj.bias"]
            y = F.layer_norm(x, (24,), state[p + "norm2.weight"], state[p + "norm2.bias"], 1e-6)
            hidden = F.gelu(y @ state[p + "mlp.fc1.weight"].T + state[p + "mlp.fc1.bias"])
            x = x + hidden @ state[p + "mlp.fc2.weight"].T + state[p + "mlp.fc2.bias"]
        cls = F.layer_norm(x[0], (24,), state["norm.weight"], state["norm.bias"], 1e-6)
        rows.append(cls @ state["head.weight"].T + state["head.bias"])
    return torch.stack(rows)


def test_the_dense_forward_is_a_vision_transformer_under_timm_names(backbone: DeiT) -> None:
    expected = reference_forward(backbone.state_dict(), images(), heads=3)
    torch.testing.assert_close(backbone(images()), expected, atol=1e-4, rtol=1e-4)


def test_a_batch_gives_what_its_images_give_alone_when_pruned(backbone: DeiT) -> None:
    scorer = LinearScorer(24)
    stages = [PruneStage(1, 7, scorer), PruneStage(2, 3, None)]
    together = backbone(images(), stages)
    alone = torch.cat([backbone(image[None], stages) for image in images()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_keeping_all_tokens_is_the_dense_model(backbone: DeiT) -> None:
    torch.testing.assert_close(backbone(images(), [PruneStage(1, 16, None)]), backbone(images()), atol=1e-5, rtol=1e-5)


def test_pruned_tokens_do_not_matter_and_kept_ones_do(backbone: DeiT) -> None:
    tokens = backbone.embed(images(1))
    index = choose_tokens(tokens[1:, :1].T, 5, explore=False)[0]
    assert set(index.tolist()) == set(tokens[1:, 0].topk(5).indices.tolist())


def test_cut_heads_compute_what_masked_heads_compute(backbone: DeiT) -> None:
    """Zeroing the columns of proj that belong to the dropped heads must equal cutting those heads out."""
    attention = backbone.blocks[0].attn
    x = torch.randn(34, 24, generator=torch.Generator().manual_seed(3))
    cut, _ = attention.cut([0, 2])(x, 2)
    with torch.no_grad():
        attention.proj.weight[:, 8:16] = 0
    masked, _ = attention(x, 2)
    torch.testing.assert_close(cut, masked, atol=1e-6, rtol=1e-5)
    assert attention.cut([1]).qkv.weight.shape == (24, 24)


def test_other_image_sizes_interpolate_the_position_embedding(backbone: DeiT) -> None:
    assert backbone(images(2, 48)).shape == (2, 10)
    assert backbone._positions(16) is backbone.pos_embed


def test_the_straight_through_bias_is_zero_and_passes_gradient_to_kept_scores_alone() -> None:
    scores = torch.randn(2, 6, requires_grad=True)
    index = choose_tokens(scores, 3, explore=False)
    bias = straight_through_bias(scores, index)
    assert bias.shape == (2, 4) and bool((bias == 0).all())
    bias.sum().backward()
    assert scores.grad is not None
    kept = torch.zeros(2, 6, dtype=torch.bool).scatter(1, index, True)
    assert bool((scores.grad[kept] > 0).all()) and bool((scores.grad[~kept] == 0).all())


def test_training_gives_the_scorer_a_gradient(backbone: DeiT) -> None:
    scorer = LinearScorer(24)
    backbone.train()
    F.cross_entropy(backbone(images(), [PruneStage(1, 5, scorer)]), torch.arange(4)).backward()
    assert scorer.weight.grad is not None and float(scorer.weight.grad.abs().sum()) > 0
