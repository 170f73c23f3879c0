"""Where the channels of layers lie, and which pixels strided layers read, in real and in odd networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import Conv2dSame, SqueezeExcite
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

from lana_ray.networks.layers import find_layers
from lana_ray.networks.layouts import Layout, Rearranged, find_offset

FIRST, LAST, UNKNOWN = Layout.CHANNELS_FIRST, Layout.CHANNELS_LAST, Layout.UNKNOWN
_STAGES = ["layers.*.blocks.*"]
_FEATURES = ["features.1.*", "features.3.*"]


@pytest.mark.parametrize(
    ("name", "options", "size", "patterns", "expected", "channels"),
    [
        ("mambaout_femto", {}, 64, None, LAST, {48, 96, 192, 288}),
        ("sequencer2d_s", {}, 56, None, LAST, {192, 384}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56}, 56, _STAGES, LAST, {96, 192, 384, 768}),
        ("swinv2_tiny_window8_256", {"img_size": 64}, 64, _STAGES, LAST, {96, 192, 384, 768}),
        ("convnext_atto", {}, 64, None, FIRST, {40, 80, 160, 320}),
        ("convnext_atto", {"conv_mlp": True}, 64, None, FIRST, {40, 80, 160, 320}),
        ("poolformer_s12", {}, 64, None, FIRST, {64, 128, 320, 512}),
        ("vit_tiny_patch16_224", {"img_size": 64}, 64, None, LAST, {192}),
        ("mixer_s32_224", {"img_size": 64}, 64, None, LAST, {512}),
    ],
)
def test_layouts_of_timms_networks(
    name: str,
    options: dict[str, Any],
    size: int,
    patterns: list[str] | None,
    expected: Layout,
    channels: set[int],
) -> None:
    layers = find_layers(timm.create_model(name, **options).eval(), torch.randn(2, 3, size, size), patterns)
    assert {layer.layout for layer in layers} == {expected}
    assert {layer.in_channels for layer in layers} | {layer.out_channels for layer in layers} == channels


@pytest.mark.parametrize(("name", "expected"), [("swin_t", LAST), ("convnext_tiny", FIRST)])
def test_layouts_of_torchvisions_networks(name: str, expected: Layout) -> None:
    network = torchvision.models.get_model(name).eval()
    layers = find_layers(network, torch.randn(2, 3, 56, 56), _FEATURES)
    assert {(layer.layout, layer.in_channels) for layer in layers} == {(expected, 96), (expected, 192)}


class _Body(nn.Module):
    """A layer inside a network whose stem gives it images or tokens, in the layout ``arrange``."""

    def __init__(self, layer: nn.Module, channels: int, arrange: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList([layer])
        self.arrange = arrange

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.arrange == "NHWC":
            x = x.permute(0, 2, 3, 1)
        if self.arrange == "NCL":
            x = x.flatten(2)
        if self.arrange == "NTD":
            x = x.flatten(2).transpose(1, 2)
        y: Tensor = self.blocks[0](x)
        return y.flatten(1)


class _ByHand(nn.Module):
    """Mixes the channels of an axis by a matrix of its own, so that no part reads the input."""

    def __init__(self, axis: int, channels: int) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.randn(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x.transpose(self.axis, -1) @ self.weight).transpose(self.axis, -1)


class _OverColumns(nn.Module):
    """Mixes columns by a linear layer and channels by a convolution, as networks of MLPs do."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.columns = nn.Linear(size, size)
        self.channels = nn.Conv2d(size, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.channels(x + self.columns(x))
        return y


class _Pinned(nn.Module):
    """Takes images of one size only, and has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (8, 8, 8):
            raise ValueError("8 only")
        return x.relu()


class _FixedHead(nn.Module):
    """A network whose head takes one size only: what stands before it is seen all the same."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(512, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


def _conv_norm(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))


def _norm_linear(channels: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))


@pytest.mark.parametrize(
    ("layer", "arrange", "expected"),
    [
        (_conv_norm(8), "NCHW", FIRST),
        (_norm_linear(8), "NHWC", LAST),
        (_ByHand(1, 8), "NCHW", FIRST),
        (_ByHand(3, 8), "NHWC", LAST),
        (_OverColumns(8), "NCHW", UNKNOWN),
        (Rearranged(_conv_norm(8), LAST), "NHWC", LAST),
        (Rearranged(_norm_linear(8), FIRST), "NCHW", FIRST),
        (nn.ReLU(), "NHWC", LAST),
        (nn.AvgPool2d(3, 1, 1), "NCHW", FIRST),
        (_Pinned(), "NCHW", UNKNOWN),
        (nn.Sequential(_conv_norm(8), nn.Flatten(2), nn.Unflatten(2, (8, 8))), "NCHW", FIRST),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_layouts_of_square_layers_are_found_by_what_they_do(
    layer: nn.Module, arrange: str, expected: Layout, fixed: bool
) -> None:
    """Eight channels of 8 x 8 pixels."""
    network: nn.Module = _Body(layer, 8, arrange)
    (result,) = find_layers(
        (_FixedHead(network) if fixed else network).eval(),
        torch.randn(2, 3, 8, 8),
        ["body.blocks.0" if fixed else "blocks.0"],
    )
    assert result.input_shape == (8, 8, 8)
    assert result.layout == expected
    assert result.is_image == (expected is not UNKNOWN)


def test_a_layer_that_changes_the_layout_has_none() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y.permute(0, 2, 3, 1)

    for size in (8, 12):
        (result,) = find_layers(_Body(Turn(), 8, "NCHW").eval(), torch.randn(2, 3, size, size), ["blocks.0"])
        assert result.layout == UNKNOWN, size


@pytest.mark.parametrize(
    ("layer", "arrange", "expected"),
    [
        (nn.Conv1d(16, 16, 3, padding=1), "NCL", FIRST),
        (nn.Sequential(nn.BatchNorm1d(16), nn.Conv1d(16, 16, 1)), "NCL", FIRST),
        (_norm_linear(16), "NTD", LAST),
        (nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), "NTD", LAST),
    ],
)
def test_sequences_and_tokens(layer: nn.Module, arrange: str, expected: Layout) -> None:
    """16 channels of 4 x 4 pixels: as many as there are tokens."""
    (result,) = find_layers(_Body(layer, 16, arrange).eval(), torch.randn(2, 3, 4, 4), ["blocks.0"])
    assert (result.input_shape, result.layout, result.in_channels) == ((16, 16), expected, 16)
    assert result.is_tokens
    assert result.usual.layout == LAST


def test_a_rearranged_module_answers_as_the_other_layout_has_it() -> None:
    conv, x = _conv_norm(4).eval(), torch.randn(2, 5, 6, 4)
    y = Rearranged(conv, LAST)(x)
    assert y.is_contiguous()
    assert torch.equal(y, conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    sequence = torch.randn(2, 4, 7)
    assert torch.equal(
        Rearranged(nn.LayerNorm(4), FIRST)(sequence), nn.LayerNorm(4)(sequence.mT).mT.contiguous()
    )


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
        (
            nn.Sequential(
                Conv2dSame(8, 16, 3, 2), nn.ReLU(), SqueezeExcite(16, rd_channels=4, act_layer=nn.SiLU)
            ),
            1,
        ),
        (nn.Sequential(SqueezeExcite(8, rd_channels=8), nn.Conv2d(8, 16, 5, 2, 2), nn.Hardswish()), 0),
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
def test_offsets_of_timms_networks(name: str, size: int, expected: list[int]) -> None:
    layers = find_layers(timm.create_model(name).eval(), torch.randn(2, 3, size, size))
    assert [layer.offset for layer in layers if layer.stride > 1] == [(x, x) for x in expected]
    assert {layer.offset for layer in layers if layer.stride == 1} == {(0, 0)}
