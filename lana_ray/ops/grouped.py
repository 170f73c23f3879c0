"""Bottlenecks around a grouped convolution: ResNeXt's and, with split attention, ResNeSt's."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, conv_bn, width
from lana_ray.ops.registry import Activation, count, odd, positive, register


@register("grouped_bottleneck", parameters={"w": positive, "k": odd, "g": count})
def grouped_bottleneck(layer: Layer, *, act: Activation, w: float, k: int, g: int) -> nn.Module:
    """Bottleneck (ResNeXt, Xie et al., arXiv 1611.05431): 1x1 reduction, grouped k x k, 1x1 expansion.

    Groups have the same width in every layer, as in RegNet (Radosavovic et al., arXiv 2003.13678): ResNeXt's
    constant number of groups would give layers of few channels groups of one or two, which are slow on
    hardware. The k x k convolution carries the stride; the output is linear, as in MBConv.

    Args:
        w: inner width relative to the output's channels, rounded to a multiple of 8 and of g.
        k: kernel of the grouped convolution.
        g: channels in each group.
    """
    hidden = width(layer.out_channels, w, math.lcm(8, g))
    return Block(
        layer,
        conv_bn(layer.in_channels, hidden, act=act),
        conv_bn(hidden, hidden, k, strided=layer, groups=hidden // g, act=act),
        conv_bn(hidden, layer.out_channels),
    )


# Not timm's SplitAttn: it computes the softmax over two logits and pads alike on both sides.
class SplitAttention(nn.Module):
    """Split attention (ResNeSt, Zhang et al., arXiv 2004.08955) of radix 2 and cardinality 1.

    Two convolutions read half of the input each; a gate of the whole image mixes their outputs channel by
    channel. The published softmax over two logits is the sigmoid of their difference, so only that is
    computed. The gate has no batch-norm, like squeeze-and-excitation, and the convolution carries the
    stride, unlike in ResNeSt, which has an average pooling after it.

    Args:
        channels: of input and output.
        strided: the layer whose stride the convolution carries.
    """

    def __init__(self, channels: int, kernel: int, *, strided: Layer, act: Activation) -> None:
        super().__init__()
        reduced = max(32, channels // 2)
        self.split = conv_bn(channels, 2 * channels, kernel, strided=strided, groups=2, act=act)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), act(), nn.Conv2d(reduced, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.split(x).chunk(2, 1)
        gate: Tensor = self.gate((first + second).mean((2, 3), keepdim=True))
        return second + gate * (first - second)


@register("split_attention", parameters={"w": positive, "k": odd})
def split_attention(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """ResNeSt's bottleneck (Zhang et al., arXiv 2004.08955): 1x1 reduction, split attention, 1x1 expansion.

    The output is linear, as in MBConv.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of the convolution that is split.
    """
    hidden = width(layer.out_channels, w)
    return Block(
        layer,
        conv_bn(layer.in_channels, hidden, act=act),
        SplitAttention(hidden, k, strided=layer, act=act),
        conv_bn(hidden, layer.out_channels),
    )
