"""The operations of an edge, by their names in DARTS and NAS-Bench-201."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def operation(name: str, channels: int, stride: int = 1, *, affine: bool = True) -> nn.Module:
    """Returns an untrained module, [n, channels, h, w] to [n, channels, ⌈h/stride⌉, ⌈w/stride⌉].

    Activations come first, so that sums of operations are linear in the operations' outputs.

    Args:
        name: any operation but ``none``, which has no module.
        stride: 1 or 2.
        affine: whether batch-norms scale and shift.
    """
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)
    kind, kernel = name[:-4], int(name[-1])
    match kind:
        case "max_pool":
            return nn.MaxPool2d(kernel, stride, kernel // 2)
        case "avg_pool":
            return nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)
        case "nor_conv":
            return relu_conv_bn(channels, channels, kernel, stride=stride, affine=affine)
        case "sep_conv":
            first = _separable(channels, kernel, stride, affine=affine)
            return nn.Sequential(*first, *_separable(channels, kernel, 1, affine=affine))
        case "dil_conv":
            return _separable(channels, kernel, stride, dilation=2, affine=affine)
    raise ValueError(f"unknown operation {name!r}")


def relu_conv_bn(
    inside: int, outside: int, kernel: int = 1, *, stride: int = 1, affine: bool = True
) -> nn.Sequential:
    """Returns ReLU, convolution and batch-norm in a row."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside, affine=affine),
    )


def _separable(channels: int, kernel: int, stride: int, *, dilation: int = 1, affine: bool) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, affine=affine))


class FactorizedReduce(nn.Module):
    """Halves height and width without skipping pixels: two 1x1 convolutions of stride 2, a pixel apart.

    The second reads the pixels below and to the right of the first's. It also reads a border of zeros, whose
    results above and to the left are cut off, so that odd heights and widths are rounded up as elsewhere.
    """

    def __init__(self, inside: int, outside: int, *, affine: bool = True) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first = nn.Conv2d(inside, outside // 2, 1, stride=2, bias=False)
        self.second = nn.Conv2d(inside, outside - outside // 2, 1, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outside, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.norm(torch.cat([self.first(x), self.second(x)[:, :, 1:, 1:]], 1))
