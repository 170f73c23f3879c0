"""Inverted residuals: MBConv (LANA's ``efn``) and Fused-MBConv (``efnv2``)."""

from __future__ import annotations

from torch import Tensor, nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, conv_bn, width
from lana_ray.ops.registry import Activation, fraction, odd, positive, register

_PARAMETERS = {"e": positive, "k": odd, "se": fraction}


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al., arXiv 1709.01507): scales each channel by a gate of the whole image.

    Args:
        ratio: width of its bottleneck relative to ``channels``.
    """

    def __init__(self, channels: int, ratio: float, act: Activation) -> None:
        super().__init__()
        reduced = max(1, round(channels * ratio))
        self.gate = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), act(), nn.Conv2d(reduced, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(x.mean((2, 3), keepdim=True))
        return x * gate


@register("mbconv", parameters=_PARAMETERS)
def mbconv(layer: Layer, *, act: Activation, e: float, k: int, se: float = 0) -> nn.Module:
    """MBConv (MobileNetV2, Sandler et al., arXiv 1801.04381): 1x1 expansion, depthwise k x k, 1x1 projection.

    Args:
        e: expanded width relative to the input's channels; at 1 there is no expansion, as published.
        k: kernel of the depthwise convolution, which also carries the stride.
        se: width of squeeze-and-excitation relative to the expanded width; 0 for none.
    """
    hidden = layer.in_channels if e == 1 else width(layer.in_channels, e)
    return Block(
        layer,
        *([] if e == 1 else [conv_bn(layer.in_channels, hidden, act=act)]),
        conv_bn(hidden, hidden, k, strided=layer, groups=hidden, act=act),
        *([SqueezeExcite(hidden, se, act)] if se else []),
        conv_bn(hidden, layer.out_channels),
    )


@register("fused_mbconv", parameters=_PARAMETERS)
def fused_mbconv(layer: Layer, *, act: Activation, e: float, k: int, se: float = 0) -> nn.Module:
    """Fused-MBConv (EfficientNetV2, Tan and Le, arXiv 2104.00298): dense k x k expansion, 1x1 projection.

    The projection is kept at expansion 1, unlike in EfficientNetV2: our last batch-norm has no activation
    after it, so the block would be linear without the projection.

    Args:
        e: expanded width relative to the input's channels.
        k: kernel of the expansion, which also carries the stride.
        se: width of squeeze-and-excitation relative to the expanded width; 0 for none.
    """
    hidden = width(layer.in_channels, e)
    return Block(
        layer,
        conv_bn(layer.in_channels, hidden, k, strided=layer, act=act),
        *([SqueezeExcite(hidden, se, act)] if se else []),
        conv_bn(hidden, layer.out_channels),
    )
