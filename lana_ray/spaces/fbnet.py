"""The layer-wise space of FBNet (Wu et al., arXiv 1812.03443, tables 1 and 2): 22 layers, 9 blocks each."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from lana_ray.ids import Architecture
from lana_ray.spaces.space import Space

BLOCKS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
"""Kernel, expansion and groups of the pointwise convolutions."""
STAGES = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
"""Channels, number of layers and stride of the first layer of each stage."""
_LAYERS = sum(count for _, count, _ in STAGES)
_STEM, _HEAD = 16, 1984


class FBNetSpace(Space):
    """The space of all networks; an architecture is each layer's block, as in HW-NAS-Bench and HELP."""

    def __init__(self, *, classes: int = 1000) -> None:
        self._classes = classes

    @property
    def sizes(self) -> tuple[int, ...]:
        return (len(BLOCKS),) * _LAYERS

    def random(self, rng: np.random.Generator) -> Architecture:
        return tuple(rng.integers(len(BLOCKS), size=_LAYERS).tolist())

    def build(self, architecture: Architecture) -> nn.Module:
        self.encode(architecture)  # raises ValueError if it is not an architecture
        parts: list[nn.Module] = [_convolution(3, _STEM, 3, stride=2)]
        channels, choices = _STEM, iter(architecture)
        for width, count, stride in STAGES:
            for layer in range(count):
                parts.append(_block(BLOCKS[next(choices)], channels, width, stride if layer == 0 else 1))
                channels = width
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_HEAD, self._classes))
        return nn.Sequential(*parts, _convolution(channels, _HEAD, 1), *head)


def _block(name: str, channels: int, width: int, stride: int) -> nn.Module:
    if name == "skip":
        same = channels == width and stride == 1
        return nn.Identity() if same else _convolution(channels, width, 1, stride=stride)
    kernel, expansion, *grouped = name.split("_")
    groups = 2 if grouped else 1
    return _InvertedResidual(channels, width, int(kernel[1:]), int(expansion[1:]), stride, groups)


class _InvertedResidual(nn.Module):
    """Figure 3 of the paper: pointwise, channel shuffle if grouped, depthwise, pointwise."""

    def __init__(
        self, channels: int, width: int, kernel: int, expansion: int, stride: int, groups: int
    ) -> None:
        super().__init__()
        middle = channels * expansion
        self.residual = channels == width and stride == 1
        self.expand = _convolution(channels, middle, 1, groups=groups)
        self.shuffle = nn.ChannelShuffle(groups) if groups > 1 else nn.Identity()
        self.depthwise = _convolution(middle, middle, kernel, stride=stride, groups=middle)
        self.project = nn.Sequential(
            nn.Conv2d(middle, width, 1, groups=groups, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.project(self.depthwise(self.shuffle(self.expand(features))))
        return features + output if self.residual else output


def _convolution(channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
