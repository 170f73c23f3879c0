"""Small networks for tests: a teacher of three layers, two of them residual, and a plain one without."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Convolution, batch-norm and ReLU, its input added where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = in_channels == out_channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class Net(nn.Module):
    """Stem, three blocks, head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.ModuleList([Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1)])
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def net(num_classes: int) -> nn.Module:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(num_classes)


def tuple_net(num_classes: int) -> nn.Module:
    """A network whose blocks answer with tuples, which no layer may."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Pair()])
            self.head = nn.Linear(3, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.blocks[0](x)
            out: Tensor = self.head(x.mean((2, 3)))
            return out

    return Outer()


def plain(num_classes: int) -> nn.Module:
    """A convolution, its batch-norm and a classifier, with the same weights whenever it is asked for."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*layers, nn.Linear(4, num_classes))


def small_vit(num_classes: int) -> nn.Module:
    """A vision transformer of timm for images of 48 pixels."""
    import timm  # takes seconds

    options = {"depth": 2, "img_size": 48, "num_classes": num_classes}
    network: nn.Module = timm.create_model("vit_tiny_patch16_224", **options)
    return network


def at_random(num_classes: int) -> nn.Module:
    """Of other weights at every call, drawn by NumPy and Python's generator too."""
    network = Net(num_classes)
    with torch.no_grad():
        network.head.bias.add_(float(np.random.rand()) + random.random())
    return network
