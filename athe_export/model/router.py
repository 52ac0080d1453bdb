"""The router: MobileNetV1 at width 0.25 (Howard et al., MobileNets, 2017, table 1), one output, the difficulty score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDTH = 0.25
# (output channels at width 1, stride) of the 13 depthwise-separable blocks
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1Router(nn.Module):
    """Normalised image [batch, 3, size, size] -> difficulty in 0..1, [batch]; low is easy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Identity()  # what the deployed form does to an image first
        width = int(32 * _WIDTH)
        layers = [_conv(3, width, 3, stride=2)]
        for channels, stride in _BLOCKS:
            out = int(channels * _WIDTH)
            layers += [_conv(width, width, 3, stride=stride, groups=width), _conv(width, out, 1)]
            width = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)

    def initialise(self, seed: int) -> None:
        """Fresh weights (He et al., 2015, fan-in, so that an untrained router still tells images apart), fixed by `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", generator=generator)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)

    def logit(self, image: Tensor) -> Tensor:
        """Log-odds of the difficulty, [batch]."""
        y: Tensor = self.classifier(self.features(self.stem(image)).mean((2, 3))).squeeze(1)
        return y

    def forward(self, image: Tensor) -> Tensor:
        return self.logit(image).sigmoid()


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )
