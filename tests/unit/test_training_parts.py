"""The parts of training by themselves: averaged weights, skipped blocks, smaller sizes, images for the router, the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from athe_export.errors import RecipeError
from athe_export.model.athe import AtheModel
from athe_export.model.checkpoint import tensors_of
from athe_export.model.tokens import Trace
from athe_export.preprocessing import Preprocessing
from athe_export.recipe import PhaseSpec, load_recipe
from athe_export.runtime.routing import difficulty_target, gain_target
from athe_export.training.average import WeightAverage
from athe_export.training.holdout import Holdout
from athe_export.training.images import ImageSet, to_input
from athe_export.training.objective import branch_objective, router_objective
from athe_export.training.phases import Loss, adaptive_loss, draw_patches, router_features_loss
from athe_export.training.plan import Phase, generator_of, learning_rate, plan
from athe_export.training.router_images import router_targets, set_apart, views_of
from athe_export.training.state import settings_digest

WHOLE = PhaseSpec(epochs=1)
PHASE = [{"epochs": 2}]
TRAIN: dict[str, Any] = {"dense": PHASE, "adaptive": PHASE, "router": PHASE}


@pytest.fixture
def model(tiny: Callable[..., Path]) -> AtheModel:
    made = AtheModel(load_recipe(tiny(train=TRAIN)).recipe)
    made.initialise(2)
    made.head_rank = ((0, 1, 2),) * 3
    return made


def numbered(count: int) -> ImageSet:
    """Images that show their position."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    return ImageSet(pixels, torch.arange(count))


# --- averaged weights -------------------------------------------------------------------------------------------------


def test_the_average_is_the_weighted_mean_of_all_weights_there_were(model: AtheModel) -> None:
    average, bias = WeightAverage(model, 0.5), model.backbone.head.bias
    wanted = bias.detach().clone()
    for value in (1.0, 2.0, 3.0):
        decay = min(0.5, (1 + average.updates) / (10 + average.updates))
        with torch.no_grad():
            bias.fill_(value)
        average.update()
        wanted = decay * wanted + (1 - decay) * value
    torch.testing.assert_close(average.tensors["head.bias"], wanted)


def test_the_average_stands_in_for_a_while_and_then_the_weights_are_back(model: AtheModel) -> None:
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.backbone.head.bias.fill_(5.0)
    with average.in_place():
        assert float(model.backbone.head.bias.detach().max()) == 0
    assert float(model.backbone.head.bias.detach().min()) == 5
    average.take()
    assert float(tensors_of(model)["head.bias"].max()) == 0


def test_the_average_follows_running_statistics_too(model: AtheModel) -> None:
    average = WeightAverage(model, 0.9)
    assert any(name.endswith("running_mean") for name in average.tensors)
    assert average.tensors.keys() == {n for n, t in tensors_of(model).items() if t.is_floating_point()}


# --- the network in training ------------------------------------------------------------------------------------------


def test_blocks_are_skipped_by_image_in_training_alone_and_the_first_never(model: AtheModel) -> None:
    backbone, image = model.backbone, torch.randn(64, 3, 32, 32)
    backbone.eval()
    plain = backbone(image)
    backbone.stochastic_depth = 0.5
    assert torch.equal(backbone(image), plain)
    backbone.train()
    assert backbone._depth(0, image, 64) is None
    factors = backbone._depth(2, image, 64)
    assert factors is not None and set(factors.unique().tolist()) == {0.0, 2.0}
    assert not torch.allclose(backbone(image), plain)


def test_an_image_whose_blocks_are_all_skipped_keeps_its_embedding(model: AtheModel) -> None:
    block, image = model.backbone.blocks[1], torch.randn(2, 3, 32, 32)
    tokens = model.backbone.embed(image)
    depth = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    made, _ = block(tokens, 2, None, None, depth)
    whole, _ = block(tokens, 2)
    made, whole, tokens = (x.reshape(2, 17, 24) for x in (made, whole, tokens))
    torch.testing.assert_close(made[0], tokens[0])
    torch.testing.assert_close(made[1], whole[1])


@pytest.mark.parametrize(("size", "kept"), [(32, 6), (64, 26), (16, 2)])
def test_a_branch_keeps_the_same_share_of_tokens_at_every_size(model: AtheModel, size: int, kept: int) -> None:
    seen = Trace()
    simple = model.recipe.branches[0]  # keep 0.4
    model.logits(torch.randn(3, 3, size, size), simple, seen)
    assert seen.kept is not None and seen.kept.shape == (3, kept)
    assert model.stages(simple)[0].k == 6


def test_the_routers_features_learn_the_classes_and_nothing_else_of_the_model_changes(tiny: Callable[..., Path]) -> None:
    """Three colours are told apart after a few steps, by a classifier that is the same in every run."""
    recipe = load_recipe(tiny(train=TRAIN | {"router_features": PHASE, "label_smoothing": 0.0})).recipe
    model = AtheModel(recipe)
    model.initialise(0)
    assert model.router is not None and recipe.train is not None and recipe.router is not None
    label = torch.arange(48) % 3
    image = F.one_hot(label, 3).float()[:, :, None, None] + 0.1 * torch.randn(48, 3, 32, 32)
    phase = Phase("router_features", PhaseSpec(epochs=1), 0, 1)
    objective = router_objective(phase, model, numbered(48))
    before = {n: t.clone() for n, t in tensors_of(model).items() if not n.startswith("router.features")}
    model.router.train()
    optimiser = torch.optim.AdamW(objective.parameters, 0.01, weight_decay=0)
    losses = []
    for _ in range(12):
        loss = router_features_loss(model, recipe.train)(image, label)  # the classifier is drawn anew, and is the same
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(t, tensors_of(model)[n]) for n, t in before.items())


@pytest.mark.parametrize("asked", ["answer", "probability"])
def test_the_router_learns_from_the_branches_as_they_are(tiny: Callable[..., Path], asked: str) -> None:
    model = AtheModel(load_recipe(tiny(train=TRAIN | {"router_target": asked})).recipe)
    model.initialise(0)
    model.head_rank = ((0, 1, 2),) * 3
    model.eval()
    images, preprocessing = numbered(8), Preprocessing(**vars(model.recipe.data.preprocessing))
    with torch.no_grad():
        image = to_input(images.pixels, 32, preprocessing)
        logits = torch.stack([model.logits(image, branch) for branch in model.recipe.branches], 1)
    sure = logits.softmax(-1)[torch.arange(8), :, images.labels].numpy()
    right = (logits.argmax(-1) == images.labels[:, None]).numpy()
    found = router_targets(model, images, preprocessing, torch.device("cpu"))
    expected = gain_target(sure) if asked == "probability" else difficulty_target(right)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_what_is_not_seen_of_an_image_changes_nothing(model: AtheModel) -> None:
    """Two images that share the seen patches, every path: dense, and a branch, which keeps its share of what is seen."""
    model.eval()
    image, seen = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 10, 3, 7], [15, 1, 2, 4, 6]])
    other = torch.randn(2, 3, 32, 32)
    for row, patches in enumerate(seen.tolist()):
        for top, left in ((8 * (p // 4), 8 * (p % 4)) for p in patches):
            other[row, :, top : top + 8, left : left + 8] = image[row, :, top : top + 8, left : left + 8]
    simple, trace = model.recipe.branches[0], Trace()
    torch.testing.assert_close(model.backbone(image, seen=seen), model.backbone(other, seen=seen))
    torch.testing.assert_close(model.logits(image, simple, trace, seen), model.logits(other, simple, None, seen))
    assert trace.scores is not None and trace.scores.shape == (2, 5)
    assert trace.kept is not None and trace.kept.shape == (2, 2)
    whole = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model.backbone(image, seen=whole), model.backbone(image))


def test_patches_are_drawn_anew_for_each_image_and_step_without_repeats() -> None:
    drawn = draw_patches(50, 16, 0.5)
    assert drawn is not None and drawn.shape == (50, 8)
    assert all(len(set(row)) == 8 for row in drawn.tolist())
    assert len({tuple(sorted(row)) for row in drawn.tolist()}) > 40
    assert set(drawn.flatten().tolist()) == set(range(16))
    assert draw_patches(50, 16, 1.0) is None


def test_all_paths_of_a_step_see_the_same_patches(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny(train=TRAIN)).recipe
    model = AtheModel(recipe)
    model.initialise(0)
    model.head_rank = ((0, 1, 2),) * 3
    given: list[torch.Tensor | None] = []
    embed = model.backbone.embed
    monkeypatch.setattr(model.backbone, "embed", lambda image, seen=None: (given.append(seen), embed(image, seen))[1])
    assert recipe.train is not None
    adaptive_loss(model, recipe.train, PhaseSpec(epochs=1, patch_keep=0.5))(torch.randn(4, 3, 32, 32), torch.arange(4))
    first, *rest = given
    assert first is not None and first.shape == (4, 8) and len(rest) == 2
    assert all(g is not None and torch.equal(g, first) for g in rest)


def _adaptive(model: AtheModel, phase: PhaseSpec = WHOLE, **changed: float) -> Loss:
    assert model.recipe.train is not None
    return adaptive_loss(model, dataclasses.replace(model.recipe.train, **changed), phase)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "trained"), [(1.0, {"of simple", "of complex"}), (0.0, {"of simple"})])
def test_steps_that_do_not_train_all_paths_train_the_easiest_branch_alone(
    tiny: Callable[..., Path], share: float, trained: set[str]
) -> None:
    model = AtheModel(load_recipe(tiny(train=TRAIN)).recipe)
    model.initialise(0)
    model.head_rank = ((0, 1, 2),) * 3
    model.train()
    _adaptive(model, PhaseSpec(epochs=1, all_paths=share))(torch.randn(4, 3, 32, 32), torch.arange(4)).backward()
    reached = {n.split(".")[1] for n, p in model.named_parameters() if n.startswith("scorers.") and p.grad is not None}
    assert reached == trained
    heads = model.backbone.blocks[1].attn.qkv.weight.grad
    assert heads is not None
    assert bool((heads.reshape(3, 3, -1)[:, 1:] != 0).any()) == (share == 1), "heads that the simple branch does not have"


def test_some_steps_train_all_paths_as_the_share_asks(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = AtheModel(load_recipe(tiny(train=TRAIN)).recipe)
    model.initialise(0)
    model.head_rank = ((0, 1, 2),) * 3
    model.train()
    run: list[str] = []
    logits = model.logits
    monkeypatch.setattr(
        model, "logits", lambda image, branch, *rest: (run.append(branch.name), logits(image, branch, *rest))[1]
    )
    loss = _adaptive(model, PhaseSpec(epochs=1, all_paths=0.3))
    torch.manual_seed(0)
    for _ in range(60):
        loss(torch.randn(1, 3, 32, 32), torch.arange(1))
    assert run.count("simple") == 60 and 8 <= run.count("complex") <= 30


def test_an_epoch_may_be_a_part_of_the_images_and_the_watch_a_part_of_the_held_out(model: AtheModel) -> None:
    images = ImageSet(torch.zeros(100, 3, 32, 32, dtype=torch.uint8), torch.zeros(100, dtype=torch.long))
    for limit, steps in ((None, 6), (40, 2), (5, 1), (1000, 6)):
        spec = PhaseSpec(epochs=1, images=limit, batch_size=16)
        assert branch_objective(Phase("dense", spec, 0, 1), model, images).steps == steps
    preprocessing = Preprocessing(**vars(model.recipe.data.preprocessing))
    assert model.recipe.train is not None
    model.recipe = dataclasses.replace(model.recipe, train=dataclasses.replace(model.recipe.train, watch_images=10))
    model.eval()
    looked: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, args: looked.append(len(args[0])))
    Holdout(model, images, preprocessing, torch.device("cpu")).reached(Phase("dense", PhaseSpec(epochs=1), 0, 1))
    assert looked == [10]


def test_kept_tokens_are_compared_with_the_dense_paths_tokens_of_the_same_patches(tiny: Callable[..., Path]) -> None:
    """A branch that keeps everything, if in another order, is the dense path: nothing is left to distil."""
    branches = [{"name": "all", "heads": 3, "prune": [{"after_blocks": 1, "keep": 1.0}, {"after_blocks": 2, "keep": 1.0}]}]
    recipe = load_recipe(tiny(branches=branches, router=None, train={"dense": [], "adaptive": PHASE})).recipe
    model = AtheModel(recipe)
    model.initialise(0)
    model.eval()
    assert recipe.train is not None
    image, label = torch.randn(4, 3, 32, 32), torch.arange(4)
    losses = {w: _adaptive(model, distill_tokens=w)(image, label) for w in (0.0, 9.0)}
    torch.testing.assert_close(losses[9.0], losses[0.0])
    half = [{"name": "half", "heads": 3, "prune": [{"after_blocks": 1, "keep": 0.5}]}]
    recipe = load_recipe(tiny(branches=half, router=None, train={"dense": [], "adaptive": PHASE})).recipe
    model = AtheModel(recipe)
    model.initialise(0)
    model.eval()
    assert recipe.train is not None
    losses = {w: _adaptive(model, distill_tokens=w)(image, label) for w in (0.0, 9.0)}
    assert float((losses[9.0] - losses[0.0]).detach()) > 1e-4


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_then_falls_to_nothing_over_all_epochs_of_a_kind(tiny: Callable[..., Path]) -> None:
    spec = load_recipe(tiny(train=TRAIN | {"dense": [{"epochs": 2, "lr": 0.1}, {"epochs": 8, "lr": 0.1}]})).recipe.train
    assert spec is not None
    first, second = plan(spec)[:2]
    assert learning_rate(first, 0.0, 1.0) < 0.002
    assert learning_rate(first, 1.0, 1.0) == pytest.approx(0.0976, abs=1e-4)
    assert learning_rate(first, 2.0, 1.0) == learning_rate(second, 0.0, 1.0)
    assert learning_rate(second, 8.0, 1.0) == pytest.approx(0)
    assert (first.ends_kind, second.ends_kind) == (False, True)


def test_every_place_of_the_plan_has_random_numbers_of_its_own() -> None:
    drawn = [
        torch.rand(1, generator=generator_of(0, *place)).item() for place in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1))
    ]
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3
    assert torch.rand(1, generator=generator_of(1, 0, 0, 1)).item() != drawn[0]


def test_images_for_the_router_are_never_those_that_the_branches_are_fitted_on(tiny: Callable[..., Path]) -> None:
    spec = load_recipe(tiny(train=TRAIN | {"router_images": 30})).recipe.train
    assert spec is not None
    rest, own = set_apart(numbered(100), spec)
    assert (len(rest), len(own)) == (70, 30)
    assert sorted(rest.labels.tolist() + own.labels.tolist()) == list(range(100))
    assert torch.equal(own.pixels[:, 0, 0, 0].long(), own.labels)
    again = set_apart(numbered(100), dataclasses.replace(spec, label_smoothing=0.0))[1]
    other = set_apart(numbered(100), dataclasses.replace(spec, seed=1))[1]
    assert torch.equal(again.labels, own.labels) and not torch.equal(other.labels, own.labels)
    with pytest.raises(RecipeError, match="30 of 30 training images leaves none"):
        set_apart(numbered(30), spec)


def test_the_first_view_for_the_router_is_the_image_itself_and_views_repeat(tiny: Callable[..., Path]) -> None:
    spec = load_recipe(tiny(train=TRAIN | {"router_views": 3})).recipe.train
    assert spec is not None
    images = ImageSet(torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8), torch.arange(10))
    views = views_of(images, spec)
    assert len(views) == 30 and views.labels.tolist() == [*range(10)] * 3
    assert torch.equal(views.pixels[:10], images.pixels)
    assert not torch.equal(views.pixels[10:20], images.pixels) and not torch.equal(views.pixels[20:], views.pixels[10:20])
    assert torch.equal(views_of(images, spec).pixels, views.pixels)


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"adaptive": [{"epochs": 1, "image_size": 16}]},
            r"adaptive\[0\]\.image_size: 16 is not the model's 32, which the last",
        ),
        ({"dense": [{"epochs": 1, "image_size": 20}]}, r"dense\[0\]\.image_size: model\.patch 8 does not divide 20"),
        (
            {"adaptive": [{"epochs": 1, "image_size": 8}, *PHASE]},
            r"adaptive\[0\]: branch simple keeps no token: this phase sees too few patches \(1\)",
        ),
        (
            {"adaptive": [{"epochs": 1, "patch_keep": 0.05}, *PHASE]},
            r"adaptive\[0\]: branch simple keeps no token: this phase sees too few patches \(1\)",
        ),
        (
            {"adaptive": [{"epochs": 1, "patch_keep": 0.5}]},
            r"adaptive\[0\]\.patch_keep: 0\.5 must be 1: the last of these phases sees every patch",
        ),
        ({"router": [{"epochs": 1, "patch_keep": 0.5}]}, r"router\[0\]\.patch_keep: has no use here"),
        ({"dense": [{"epochs": 1, "all_paths": 0.5}]}, r"dense\[0\]\.all_paths: has no use here"),
        ({"router": [{"epochs": 1, "all_paths": 0.5}]}, r"router\[0\]\.all_paths: has no use here"),
        ({"router": [{"epochs": 1, "image_size": 16}]}, r"router\[0\]\.image_size: has no use here"),
        ({"router_features": PHASE, "router": []}, r"router_features: leads nowhere without train\.router phases"),
        ({"images": 10, "router_images": 10}, r"router_images: 10 of 10 images leaves none"),
        ({"repeated_augmentation": 3}, r"dense\[0\]\.batch_size: 128 is no multiple of repeated_augmentation"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(tiny: Callable[..., Path], train: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(tiny(train=TRAIN | train))


@pytest.mark.parametrize("name", ["dense", "oracle"])
def test_a_branch_that_would_be_mistaken_for_another_path_in_the_metrics_is_refused(
    tiny: Callable[..., Path], name: str
) -> None:
    branches = [{"name": name, "heads": 1}, {"name": "complex", "heads": 3}]
    load_recipe(tiny(branches=branches))  # where nothing is trained there is nothing to mistake
    with pytest.raises(RecipeError, match=rf"branches\[0\]\.name: '{name}' is another path's name"):
        load_recipe(tiny(branches=branches, train=TRAIN))


def test_keys_left_at_their_defaults_do_not_change_the_settings_and_set_ones_do(tiny: Callable[..., Path]) -> None:
    plain = settings_digest(load_recipe(tiny(train=TRAIN)).recipe)
    defaults = {"ema": 0.0, "mixup": 0.0, "rank_epochs": 1, "trivial_augment": False, "router_images": 0}
    spelt = TRAIN | defaults | {"dense": [{"epochs": 2, "light": False}]}
    assert settings_digest(load_recipe(tiny(train=spelt)).recipe) == plain
    for change in ({"ema": 0.99}, {"dense": [{"epochs": 2, "light": True}]}, {"rank_epochs": 2}, {"seed": 1}):
        assert settings_digest(load_recipe(tiny(train=TRAIN | change)).recipe) != plain
