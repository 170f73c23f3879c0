"""Where strided layers read, against where their padding says."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from lana_ray.networks.layers import find_layers
from lana_ray.networks.reach import find_offset
from lana_ray.ops.mbconv import SqueezeExcite


def _padded(kernel: int, stride: int, before: int, behind: int, dilation: int = 1) -> nn.Module:
    pad = nn.ZeroPad2d((before, behind, before, behind))
    return nn.Sequential(pad, nn.Conv2d(8, 12, kernel, stride, dilation=dilation))


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("size", [4, 5, 8, 9, 24, 25, 56])
def test_the_middle_of_the_kernel_is_found(kernel: int, stride: int, size: int) -> None:
    """By TensorFlow's rule, and with all of it behind or before."""
    if kernel < stride:
        return
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    for before in (total // 2, 0, total):
        conv = _padded(kernel, stride, before, total - before)
        offset = (kernel - 1) / 2 - before
        assert find_offset(conv, 8, (size, size), stride) == (offset, offset), before


def test_rows_and_columns_are_found_apart() -> None:
    conv = Conv2dSame(8, 12, (3, 5), 2, bias=False)
    assert find_offset(conv, 8, (8, 7), 2) == (1, 0)
    assert find_offset(conv, 8, (7, 8), 2) == (0, 1)


class _Sum(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class _Attends(nn.Module):
    """Every output pixel reads the whole image."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return nn.functional.avg_pool2d(mixed.mT.reshape(x.shape), 2)


@pytest.mark.parametrize(
    ("module", "offset"),
    [
        (nn.Conv2d(8, 12, 3, 2, 1), 0),
        (nn.Conv2d(8, 12, 3, 2, 2, dilation=2), 0),
        (MaxPool2dSame(3, 2), 1),
        (nn.MaxPool2d(3, 2, 1), 0),
        (nn.AvgPool2d(2), 0.5),
        (nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.AvgPool2d(3, 2, 1)), 0),
        (nn.Sequential(Conv2dSame(8, 16, 3, 2), nn.ReLU(), SqueezeExcite(16, 0.25, nn.SiLU)), 1),
        (nn.Sequential(SqueezeExcite(8, 1, nn.ReLU), nn.Conv2d(8, 16, 5, 2, 2), nn.Hardswish()), 0),
        (_Sum(Conv2dSame(8, 8, 3, 2), nn.Conv2d(8, 8, 1, 2)), 1),
        (_Sum(nn.Conv2d(8, 8, 3, 2, 1), nn.AvgPool2d(2)), 0),
        (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, 1, 1)), 0.5),
        (_Attends(), 0),
    ],
)
@pytest.mark.parametrize("size", [2, 4, 12, 40])
def test_kinds_of_strided_layers(module: nn.Module, offset: float, size: int) -> None:
    assert find_offset(module, 8, (size, size), 2) == (offset, offset)


class _OneSize(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = Conv2dSame(8, 8, 3, 2)
        self.positions = nn.Parameter(torch.randn(8, size, size))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x + self.positions)
        return y


def test_a_module_of_one_size_is_tried_at_it() -> None:
    assert find_offset(_OneSize(16), 8, (16, 16), 2) == (1, 1)


@pytest.mark.parametrize(("size", "suggested"), [(8, 3), (10, 2), (7, 2)])
def test_a_stride_that_the_sizes_only_suggest_is_none(size: int, suggested: int) -> None:
    """A convolution of 3 x 3 with a stride of 2 and no padding: 8 to 3, 10 to 4, 7 to 3 pixels."""
    conv = nn.Conv2d(8, 8, 3, 2)
    assert find_offset(conv, 8, (size, size), suggested) is None


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("tf_efficientnet_lite0", 64, [1, 1, 1, 1]),
        ("tf_efficientnet_lite0", 72, [1, 1, 0, 0]),  # 36, 18, 9 and 5 pixels
        ("tf_efficientnetv2_b0", 64, [1, 1, 1, 1]),
        ("tf_mobilenetv3_small_minimal_100", 64, [1, 1, 1, 1]),
        ("efficientnet_lite0", 64, [0, 0, 0, 0]),
        ("resnet18", 64, [0, 0, 0]),
        ("resnetblur18", 64, [0, 0, 0]),
        ("resnest14d", 64, [0, 0, 0]),
        ("resnet26d", 64, [0, 0, 0]),
        ("regnety_002", 64, [0, 0, 0, 0]),
    ],
)
def test_layers_of_timms_networks(name: str, size: int, expected: list[int]) -> None:
    layers = find_layers(timm.create_model(name).eval(), torch.randn(2, 3, size, size))
    assert [layer.offset for layer in layers if layer.stride > 1] == [(x, x) for x in expected]
    assert {layer.offset for layer in layers if layer.stride == 1} == {(0, 0)}
