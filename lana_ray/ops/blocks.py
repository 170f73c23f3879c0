"""Parts shared by the families: conv-BN-activation, padding, sums of branches, widths, the residual."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lana_ray.networks.layers import Layer
from lana_ray.networks.padding import PaddedConv2d
from lana_ray.ops.registry import Activation


class Block(nn.Module):
    """A body that keeps the layer's shapes, with its input added if the layer has a residual."""

    def __init__(self, layer: Layer, *stages: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*stages)
        self.residual = layer.residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class Sum(nn.Module):
    """Branches that read the same input and whose outputs are added.

    A warm start uses the main branch alone and zeroes the batch-norms of the others.
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
    strided: Layer | None = None,
    groups: int = 1,
    act: Activation | None = None,
) -> nn.Sequential:
    """Convolution, batch-norm and, if ``act`` is set, activation; [N, C, H, W] to [N, C', H', W'].

    Args:
        kernel: odd; the padding is kernel // 2 on every side.
        strided: the layer whose stride and padding the convolution takes over, so that it maps images of
            the layer's input size to its output size.
    """
    # Not timm's ConvNormAct: it pads alike on both sides, and its batch-norm contains the activation.
    conv: nn.Conv2d
    if strided is None or strided.offset is None or not any(map(math.floor, strided.offset)):
        stride = strided.stride if strided else 1
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    else:
        conv = _aligned_conv(in_channels, out_channels, kernel, strided, groups)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *([act()] if act else []))


def _aligned_conv(
    in_channels: int, out_channels: int, kernel: int, layer: Layer, groups: int
) -> PaddedConv2d:
    """Returns a convolution whose kernel's middle lies at the layer's ``offset``, in whole pixels."""
    assert layer.offset is not None
    sides = []
    for before, after, offset in zip(layer.input_size, layer.output_size, layer.offset, strict=True):
        # With more padding, the kernel would read nothing but padding.
        ahead = min(kernel // 2 - math.floor(offset), kernel - 1)
        behind = (after - 1) * layer.stride + kernel - before - ahead
        sides.append((ahead, max(0, behind)))
    rows, columns = sides
    return PaddedConv2d(
        in_channels, out_channels, kernel, layer.stride, groups=groups, bias=False, rows=rows, columns=columns
    )


def width(channels: int, factor: float, multiple: int = 8) -> int:
    """Returns channels times factor, rounded to a multiple above 0 that is at least 90 % of the product.

    This is the rule of MobileNet and EfficientNet, so that an equal expansion gives the teacher's own width.
    """
    exact = channels * factor
    rounded = max(multiple, int(exact + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * exact else rounded + multiple
