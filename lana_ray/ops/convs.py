"""Dense convolutions: the ResNet bottleneck and the pair of k x k convolutions."""

from __future__ import annotations

from torch import nn

from lana_ray.layers import Layer
from lana_ray.ops.blocks import Block, conv_bn, width
from lana_ray.ops.registry import Activation, odd, positive, register

_PARAMETERS = {"w": positive, "k": odd}


@register("bottleneck", parameters=_PARAMETERS)
def bottleneck(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """Bottleneck (ResNet, He et al., arXiv 1512.03385): 1x1 reduction, dense k x k, 1x1 expansion.

    The k x k convolution carries the stride, as in ResNet v1.5. The output is linear, as MBConv's.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of the middle convolution.
    """
    hidden = width(layer.out_channels, w)
    return Block(
        layer,
        conv_bn(layer.in_channels, hidden, act=act),
        conv_bn(hidden, hidden, k, stride=layer.stride, act=act),
        conv_bn(hidden, layer.out_channels),
    )


@register("conv_pair", parameters=_PARAMETERS)
def conv_pair(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """Two dense k x k convolutions, the body of ResNet's basic block (arXiv 1512.03385) at any inner width.

    The first carries the stride. The output is linear, as MBConv's.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of both convolutions.
    """
    hidden = width(layer.out_channels, w)
    return Block(
        layer,
        conv_bn(layer.in_channels, hidden, k, stride=layer.stride, act=act),
        conv_bn(hidden, layer.out_channels, k),
    )
