"""Scorers against their definitions, written out anew, and what their cuts do to a forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athe_export.model.deit import DeiT
from athe_export.model.scorers import LEARNED, Significance, TokenPredictor, prune_stages
from athe_export.model.tokens import Attended, PruneStage, Seen, Trace
from athe_export.recipe import BranchSpec, ModelSpec, PruneSpec
from athe_export.training.phases import _token_loss

SPEC = ModelSpec("deit", image_size=32, patch=8, dim=24, depth=3, heads=3, classes=10)
KINDS = ("linear", "dynamicvit", "cls_attention", "evit", "ats")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def backbone() -> DeiT:
    model = DeiT(SPEC)
    model.initialise(0)
    with torch.no_grad():  # larger than at initialisation, so that attention is uneven and every term shows
        for seed, parameter in enumerate(model.parameters()):
            parameter.mul_(4).add_(0.05 * drawn(*parameter.shape, seed=seed))
    return model.eval()


def stages(kind: str, *keep: float) -> tuple[PruneStage, ...]:
    """A branch's stages after blocks 1, 2, …; learned scorers of random weights."""
    prune = tuple(PruneSpec(after, share) for after, share in enumerate(keep, 1))
    torch.manual_seed(3)
    learned = nn.ModuleDict({str(s.after_blocks): LEARNED[kind](SPEC.dim) for s in prune}) if kind in LEARNED else None
    return prune_stages(BranchSpec("only", SPEC.heads, prune, kind), SPEC.patches, learned)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_images_give_alone(backbone: DeiT, kind: str) -> None:
    images, cut = drawn(4, 3, 32, 32), stages(kind, 0.6, 0.5)
    alone = torch.cat([backbone(image[None], cut) for image in images])
    torch.testing.assert_close(backbone(images, cut), alone, atol=1e-5, rtol=1e-5)


def test_evit_fuses_what_it_drops_into_one_token_weighted_by_class_attention(backbone: DeiT) -> None:
    image = drawn(1, 3, 32, 32)
    x = backbone.embed(image)
    x, _ = backbone.blocks[0](x, 1)
    x, attended = backbone.blocks[1].attend(x, 1, None, None, None)
    worth = attended.probabilities[0, :, 0, 1:].mean(0)
    best = worth.argsort(descending=True)
    kept, rest = best[:6], best[6:]
    fused = sum(worth[i] * x[1 + i] for i in rest.tolist())
    x = torch.cat([x[:1], x[1 + kept], fused[None]])
    x = backbone.blocks[1].feed(x, None)
    x, _ = backbone.blocks[2](x, 1)
    expected = backbone.head(backbone.norm(x[:1]))
    torch.testing.assert_close(backbone(image, stages("evit", 6 / 16)), expected, atol=1e-5, rtol=1e-5)


def test_ats_scores_are_the_attention_of_cls_times_the_length_of_the_value_normalised_in_each_head() -> None:
    probabilities, values = drawn(2, 3, 5, 5).softmax(-1), drawn(2, 3, 5, 8, seed=1)
    found = Significance()(Seen(drawn(8, 24), 2, Attended(probabilities, values)))
    for image in range(2):
        expected = torch.zeros(4)
        for head in range(3):
            own = [probabilities[image, head, 0, j] * values[image, head, j].norm() for j in range(1, 5)]
            expected += torch.stack(own) / sum(own)
        torch.testing.assert_close(found[image], expected)


def test_dynamicvits_predictor_joins_each_tokens_features_with_the_mean_of_all() -> None:
    """From the equations: local and global halves side by side, two probabilities, of which the second is to keep."""
    torch.manual_seed(0)
    predictor, tokens = TokenPredictor(24), drawn(2, 5, 24)
    with torch.no_grad():
        z = F.gelu(predictor.embed(predictor.norm(tokens)))
        local, shared = z[..., :12], z[..., 12:].mean(1, keepdim=True)
        joined = torch.cat([local, shared.repeat(1, 5, 1)], -1)
        keep = predictor.decide(F.gelu(predictor.narrow(F.gelu(predictor.mix(joined))))).softmax(-1)[..., 1]
        found = predictor(Seen(tokens.flatten(0, 1), 2, Attended(tokens, tokens)))
    torch.testing.assert_close(found.sigmoid(), keep)
    assert float(keep.std()) > 0


@pytest.mark.parametrize(("kind", "rows"), [("evit", 1 + 8 + 1), ("ats", 1 + 8), ("cls_attention", 1 + 16)])
def test_evit_and_ats_cut_between_attention_and_mlp_of_the_next_block_and_others_before_it(
    backbone: DeiT, kind: str, rows: int
) -> None:
    """Of the blocks' linear layers: which rows they see, the CLS token first."""
    seen: dict[str, int] = {}
    for index in (0, 1, 2):
        block = backbone.blocks[index]
        for part, layer in (("qkv", block.attn.qkv), ("fc1", block.mlp.fc1)):
            layer.register_forward_hook(lambda _m, given, _o, name=f"{index}.{part}": seen.update({name: len(given[0])}))
    backbone(drawn(1, 3, 32, 32), stages(kind, 0.5))
    before = 17 if kind in ("evit", "ats") else 9
    assert seen == {
        "0.qkv": 17, "0.fc1": 17, "1.qkv": before, "1.fc1": rows if before == 17 else 9, "2.qkv": rows if before == 17 else 9,
        "2.fc1": rows if before == 17 else 9,
    }  # fmt: skip


def test_a_fused_token_is_among_those_of_the_next_stage_and_in_the_count() -> None:
    branch = BranchSpec("only", 3, tuple(PruneSpec(a, 0.7) for a in (3, 6, 9)), "evit")
    assert [k for _, k in branch.kept_tokens(196)] == [137, 97, 69]  # 0.7 of 196, of 138 and of 98
    assert branch.fuses and branch.cuts_inside


def test_the_trace_tells_fused_tokens_from_patches(backbone: DeiT) -> None:
    trace = Trace()
    backbone(drawn(8, 3, 32, 32), stages("evit", 0.25, 1.0), trace=trace)  # the second stage keeps all: 4 patches, 1 fused
    assert trace.kept is not None and trace.kept.shape == (8, 5)
    assert bool(((trace.kept == -1).sum(1) == 1).all())
    patches = trace.kept[trace.kept >= 0]
    assert len(patches) == 32 and int(patches.max()) < 16


def test_the_distance_to_the_dense_paths_tokens_is_of_patches_alone(backbone: DeiT) -> None:
    """A fused token, kept by a later stage or behind its tokens, has no counterpart in the dense path."""
    image, dense, branch = drawn(8, 3, 32, 32), Trace(), Trace()
    backbone(image, trace=dense)
    backbone(image, stages("evit", 0.5, 0.75), trace=branch)
    assert branch.kept is not None and branch.tokens is not None and dense.tokens is not None
    assert bool((branch.kept < 0).any()) and branch.tokens.shape[1] == 1 + 7 + 1
    pairs = [(b, slot, int(p)) for b in range(8) for slot, p in enumerate(branch.kept[b]) if p >= 0]
    squares = [(branch.tokens[b, 1 + slot] - dense.tokens[b, 1 + p]).square().mean() for b, slot, p in pairs]
    torch.testing.assert_close(_token_loss(nn.Identity(), dense, branch), torch.stack(squares).mean())


@pytest.mark.parametrize("kind", ["cls_attention", "evit", "ats"])
def test_scores_without_weights_are_not_explored_in_training(backbone: DeiT, kind: str) -> None:
    """Noise as large as a learned score would make the choice among attention probabilities a random one."""
    image, deployed, trained = drawn(4, 3, 32, 32), Trace(), Trace()
    backbone(image, stages(kind, 0.5), trace=deployed)
    backbone.train()
    backbone(image, stages(kind, 0.5), trace=trained)
    assert deployed.kept is not None and trained.kept is not None
    assert torch.equal(deployed.kept.sort().values, trained.kept.sort().values)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", list(LEARNED))
def test_training_gives_every_weight_of_a_learned_scorer_a_gradient(backbone: DeiT, kind: str, fused: bool) -> None:
    cut = [replace(stage, fused=fused) for stage in stages(kind, 0.5)]
    backbone.train()
    F.cross_entropy(backbone(drawn(4, 3, 32, 32), cut), torch.arange(4)).backward()
    assert cut[0].scorer is not None
    for name, parameter in cut[0].scorer.named_parameters():
        if not (name.endswith("bias") and parameter.numel() <= 2):  # added to every score, it changes their order in nothing
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_evit_passes_a_gradient_through_the_fused_token(backbone: DeiT) -> None:
    """To the attention that it is weighted by: of the same cut without the fused token it would be another one."""
    image, grads = drawn(2, 3, 32, 32), []
    for fused in (True, False):
        backbone.zero_grad()
        cut = [PruneStage(1, 8, None, inside=True, fused=fused)]
        F.cross_entropy(backbone(image, cut), torch.arange(2)).backward()
        grads.append(backbone.blocks[1].attn.qkv.weight.grad.clone())
    assert float((grads[0] - grads[1]).abs().max()) > 1e-6
