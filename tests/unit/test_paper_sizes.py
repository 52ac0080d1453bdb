"""Model definitions at the papers' own configurations: parameters and multiply-accumulates are those that the papers print.

Counted on shapes alone, without memory for a weight. A paper's FLOPs are multiply-accumulates; it prints one digit behind
the point, rounded or cut off, so less than 0.1 G lies between.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from athe_export.model.biformer import BiFormer
from athe_export.model.deit import DeiT
from athe_export.model.scorers import LEARNED, prune_stages
from athe_export.recipe import BiFormerSpec, BranchSpec, ModelSpec, PruneSpec


def deit(dim: int, scorer: str | None = None, keep: float = 1.0) -> tuple[float, float]:
    """Million parameters and G multiply-accumulates of a DeiT of heads of 64, at 224 pixels and 1000 classes."""
    spec = ModelSpec("deit", image_size=224, patch=16, dim=dim, depth=12, heads=dim // 64, classes=1000)
    prune = tuple(PruneSpec(after, keep) for after in (3, 6, 9)) if scorer else ()
    with torch.device("meta"):
        model = DeiT(spec).eval()
        learned = nn.ModuleDict({str(s.after_blocks): LEARNED[scorer](dim) for s in prune}) if scorer in LEARNED else None
        stages = prune_stages(BranchSpec("only", spec.heads, prune, scorer or "linear"), spec.patches, learned)  # type: ignore[arg-type]
        parameters = sum(p.numel() for p in (*model.parameters(), *(learned.parameters() if learned else ())))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224), stages)
    return parameters / 1e6, counter.get_total_flops() / 2e9


# Touvron et al., 2021, table 1 (5, 22 and 86 M parameters); further digits and multiply-accumulates of timm's model cards
@pytest.mark.parametrize(("dim", "parameters", "macs"), [(192, 5.7, 1.3), (384, 22.1, 4.6), (768, 86.6, 17.6)])
def test_deit_has_the_size_of_its_paper(dim: int, parameters: float, macs: float) -> None:
    found = deit(dim)
    assert round(found[0], 1) == pytest.approx(parameters, abs=0.051) and found[1] == pytest.approx(macs, abs=0.1)


# Rao et al., 2021, table 1 (DeiT-S); its predictors are as large as those in table 2, 0.7 M parameters; DynamicViT-256 of
# the published models
@pytest.mark.parametrize(("dim", "keep", "macs"), [(384, 0.7, 2.9), (384, 0.8, 3.4), (384, 0.9, 4.0), (256, 0.7, 1.3)])
def test_dynamicvit_has_the_size_of_its_paper(dim: int, keep: float, macs: float) -> None:
    found = deit(dim, "dynamicvit", keep)
    assert found[1] == pytest.approx(macs, abs=0.1)
    if dim == 384:
        assert round(found[0], 1) == 22.8


# Liang et al., 2022 (DeiT-S, with inattentive token fusion)
@pytest.mark.parametrize(("keep", "macs"), [(0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)])
def test_evit_has_the_size_of_its_paper(keep: float, macs: float) -> None:
    found = deit(384, "evit", keep)
    assert found[1] == pytest.approx(macs, abs=0.05)
    assert round(found[0], 1) == 22.1  # nothing to learn


# Zhu et al., 2023, the published models: T, S and B
@pytest.mark.parametrize(
    ("dim", "depths", "parameters", "macs"),
    [(64, (2, 2, 8, 2), 13.1, 2.2), (64, (4, 4, 18, 4), 25.5, 4.5), (96, (4, 4, 18, 4), 56.8, 9.8)],
)
def test_biformer_has_the_size_of_its_paper(dim: int, depths: tuple[int, ...], parameters: float, macs: float) -> None:
    stages = BiFormerSpec(depths, top_k=(1, 4, 16, 49))
    spec = ModelSpec("biformer", 224, 4, dim, sum(depths), heads=dim // 32, classes=1000, mlp_ratio=3.0, biformer=stages)
    with torch.device("meta"):
        model = BiFormer(spec).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=0.05)


def test_half_of_every_layer_of_deit_base_pruned_leaves_what_the_library_behind_pqv_mobile_reports() -> None:
    """Torch-Pruning, its example for transformers: 86.57 M and 17.59 G to 22.05 M and 4.61 G."""
    spec = ModelSpec("deit", image_size=224, patch=16, dim=384, depth=12, heads=12, classes=1000)
    with torch.device("meta"):
        model = DeiT(spec).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 22.05
    assert counter.get_total_flops() / 2e9 == pytest.approx(4.61, abs=0.05)
