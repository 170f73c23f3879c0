"""Inverted residuals: MBConv (LANA's ``efn``) and Fused-MBConv (``efnv2``)."""

from __future__ import annotations

from torch import nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, conv_bn, width
from lana_ray.ops.registry import Activation, fraction, odd, positive, register

# Not timm's InvertedResidual and EdgeResidual, which pad alike on both sides and decide on the residual.
_PARAMETERS = {"e": positive, "k": odd, "se": fraction}


def _squeeze_excite(channels: int, ratio: float, act: Activation) -> list[nn.Module]:
    """Returns squeeze-and-excitation (Hu et al., arXiv 1709.01507), or nothing if ``ratio`` is 0.

    Args:
        ratio: width of its bottleneck relative to ``channels``.
    """
    if not ratio:
        return []
    from timm.layers import SqueezeExcite  # takes seconds, and only blocks with it need it

    reduced = max(1, round(channels * ratio))
    # timm would make the activation work in place, which is another operator of the exported program.
    return [
        SqueezeExcite(channels, rd_channels=reduced, act_layer=lambda inplace: act(), gate_layer=nn.Sigmoid)
    ]


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
        *_squeeze_excite(hidden, se, act),
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
        *_squeeze_excite(hidden, se, act),
        conv_bn(hidden, layer.out_channels),
    )
