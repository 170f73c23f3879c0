"""Candidates read the pixels that their layer reads, and stand in the layer's own axes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.deploy import to_onnx
from lana_ray.networks.layers import Layer, batch_statistics, find_layers, observe
from lana_ray.networks.layouts import Layout, Rearranged, find_offset
from lana_ray.ops import build_op, parse_op, warm_start
from lana_ray.ops.blocks import conv_bn
from lana_ray.spaces.layerwise import activation
from lana_ray.testing.layers import layer

KERNELS = ["mbconv_e2_k{}", "fused_mbconv_e1_k{}", "bottleneck_w1_k{}", "conv_pair_w1_k{}", "repvgg_w1_k{}"]


def _same(size: tuple[int, int], stride: int, layout: Layout = Layout.CHANNELS_FIRST) -> Layer:
    """A layer of kernel 3 that pads as TensorFlow does."""
    after = tuple(-(-side // stride) for side in size)
    pads = [max((b - 1) * stride + 3 - a, 0) for a, b in zip(size, after, strict=True)]
    offset = (1.0 - pads[0] // 2, 1.0 - pads[1] // 2)
    if layout is Layout.CHANNELS_LAST:
        return layer((*size, 8), (*after, 12), layout=layout, offset=offset)
    return layer((8, *size), (12, *after), offset=offset)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("op", KERNELS)
@pytest.mark.parametrize(("size", "stride"), [((24, 24), 2), ((25, 24), 2), ((32, 37), 3)])
def test_the_middle_of_every_kernel_lies_where_the_layers_does(
    op: str, kernel: int, size: tuple[int, int], stride: int
) -> None:
    at = _same(size, stride)
    assert at.stride == stride
    module = build_op(parse_op(op.format(kernel)), at, seed=0)
    assert find_offset(_OfItsSize(module, size), 8, size, stride) == at.offset


class _OfItsSize(nn.Module):
    """Refuses images of another size, for which the candidate was not made."""

    def __init__(self, module: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(self.size)
        y: Tensor = self.module(x)
        return y


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(2, 2), (3, 4), (7, 8), (9, 5), (16, 16)])
@pytest.mark.parametrize("offset", [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.5, 0.5), (-1.0, 0.0)])
@torch.no_grad()
def test_a_strided_convolution_is_a_sample_of_one_without_stride(
    kernel: int, size: tuple[int, int], offset: tuple[float, float]
) -> None:
    """Small images too, where the kernel is larger than what is left of them."""
    after = (-(-size[0] // 2), -(-size[1] // 2))
    at = layer((4, *size), (6, *after), offset=offset)
    conv: Any = conv_bn(4, 6, kernel, strided=at)[0]
    x, far = torch.randn(2, 4, *size), 12
    everywhere = F.conv2d(F.pad(x, [far] * 4), conv.weight)
    reads_something = kernel // 2 + 1 - kernel  # more padding than that, and nothing else would be read
    rows, columns = (far - kernel // 2 + max(math.floor(middle), reads_something) for middle in offset)
    expected = everywhere[:, :, rows::2, columns::2][:, :, : after[0], : after[1]]
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def _as_if_trained(module: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, with running statistics of its own activations."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        module.train()(x)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnetv2_b0"])
def test_a_candidate_like_its_layer_takes_over_its_weights(name: str) -> None:
    """As wide as the layer with the layer's kernel: after a warm start it answers as the layer does."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 64, 64)
    network = _as_if_trained(timm.create_model(name), images)
    strided = [at for at in find_layers(network, images[:2]) if at.stride > 1]
    assert {at.offset for at in strided} == {(1, 1)}
    for at in strided:
        teacher: Any = network.get_submodule(at.name)
        if hasattr(teacher, "se") and not isinstance(teacher.se, nn.Identity):
            continue
        depthwise = hasattr(teacher, "conv_dw")
        first = teacher.conv_dw if depthwise else teacher.conv_exp
        family = "mbconv_e6" if depthwise else "fused_mbconv_e4"
        op = parse_op(f"{family}_k{first.kernel_size[0]}")
        candidate = build_op(op, at, seed=0, act=activation(network))
        inputs, outputs = observe(network, [at.name], images)[at.name]
        warm_start(candidate, at, teacher, inputs, outputs)
        with torch.no_grad(), batch_statistics(candidate), batch_statistics(teacher):
            expected = teacher(inputs)
            error = (candidate(inputs) - expected).square().sum() / expected.square().sum()
        assert error < 0.02, f"{at.name}: {error:.3f}"


class _LastBlock(nn.Module):
    """A stride-2 inverted residual in a network with channels last."""

    def __init__(self) -> None:
        super().__init__()
        inner = build_op(parse_op("mbconv_e2_k3"), _same((8, 8), 2), seed=7)
        self.block = Rearranged(inner, Layout.CHANNELS_LAST)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y


def test_a_warm_start_reaches_through_the_permutations() -> None:
    at = _same((8, 8), 2, Layout.CHANNELS_LAST)
    x = torch.randn(64, *at.input_shape)
    teacher = _as_if_trained(_LastBlock(), x)
    candidate = build_op(parse_op("mbconv_e2_k3"), at, seed=0)
    with torch.no_grad():
        y = teacher(x)
        warm_start(candidate, at, teacher, x, y)
        assert (candidate(x) - y).square().sum() < 0.02 * y.square().sum()


@pytest.mark.parametrize(("name", "patterns"), [("mambaout_femto", None), ("swin_t", ["features.1.*"])])
def test_convolutions_act_on_the_channels_of_channels_last_networks(
    name: str, patterns: list[str] | None
) -> None:
    network = (torchvision.models.get_model if patterns else timm.create_model)(name).eval()
    first = find_layers(network, torch.randn(2, 3, 64, 64), patterns)[0]
    candidate = build_op(parse_op("mbconv_e3_k3"), first, seed=0).eval()
    convs = [part for part in candidate.modules() if isinstance(part, nn.Conv2d)]
    channels = first.input_shape[-1]
    assert (convs[0].in_channels, convs[-1].out_channels) == (channels, channels)
    x = torch.zeros(1, *first.input_shape)
    x[0, 5, 7, 3] = 1
    with torch.no_grad():
        moved = (candidate(x) - candidate(torch.zeros_like(x))).abs().sum((0, 3))
    rows, columns = moved.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 6, 6, 8)


def test_onnx_keeps_a_strided_candidates_padding_in_its_convolutions() -> None:
    onnx = pytest.importorskip("onnx")
    at = _same((8, 8), 2)
    for op in ("mbconv_e3_k3", "mbconv_e3_k5", "repvgg_w1_k3"):
        module = build_op(parse_op(op), at, seed=0).eval()
        program = to_onnx(module, torch.randn(2, *at.input_shape), dynamic_batch=True)
        nodes = onnx.load_from_string(program).graph.node
        assert "Pad" not in {node.op_type for node in nodes}, op
        pads = [list(a.ints) for node in nodes for a in node.attribute if a.name == "pads"]
        assert ([0, 0, 1, 1] if op.endswith("k3") else [1, 1, 2, 2]) in pads, op
