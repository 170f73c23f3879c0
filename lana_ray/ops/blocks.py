"""What the families share: conv-BN-activation, sums of branches, rounded widths, the layer's residual."""

from __future__ import annotations

from torch import Tensor, nn

from lana_ray.layers import Layer
from lana_ray.ops.registry import Activation


class Block(nn.Module):
    """A body that keeps the layer's shapes, its input added where the layer's own is."""

    def __init__(self, layer: Layer, *stages: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*stages)
        self.residual = layer.residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class Sum(nn.Module):
    """Branches that read the same input, their outputs added.

    A warm start works on the main one alone and silences the batch-norms of the others.
    """

    def __init__(self, main: nn.Sequential, *others: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.others = nn.ModuleList(others)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.main(x)
        for branch in self.others:
            y = y + branch(x)
        return y


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    act: Activation | None = None,
) -> nn.Sequential:
    """Convolution, batch-norm and, where given, activation; [N, C, H, W] to [N, C', ⌈H/stride⌉, ⌈W/stride⌉].

    The padding is kernel // 2 on every side, so that no runtime needs an extra operator for it.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *([act()] if act else []))


def width(channels: int, factor: float, multiple: int = 8) -> int:
    """Channels times factor, rounded to a multiple above 0 that is at least 90 % of the product.

    The rule of MobileNet and EfficientNet, so that an equal expansion gives the teacher's own width.
    """
    exact = channels * factor
    rounded = max(multiple, int(exact + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * exact else rounded
