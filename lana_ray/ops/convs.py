"""Dense convolutions: the ResNet bottleneck and families of two stacked k x k convolutions."""

from __future__ import annotations

from torch import nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, Sum, conv_bn, width
from lana_ray.ops.registry import Activation, is_image_layer, odd, positive, register

_PARAMETERS = {"w": positive, "k": odd}


@register("bottleneck", parameters=_PARAMETERS)
def bottleneck(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """Bottleneck (ResNet, He et al., arXiv 1512.03385): 1x1 reduction, dense k x k, 1x1 expansion.

    The k x k convolution carries the stride, as in ResNet v1.5. The output is linear, as in MBConv.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of the middle convolution.
    """
    hidden = width(layer.out_channels, w)
    return Block(
        layer,
        conv_bn(layer.in_channels, hidden, act=act),
        conv_bn(hidden, hidden, k, strided=layer, act=act),
        conv_bn(hidden, layer.out_channels),
    )


@register("conv_pair", parameters=_PARAMETERS)
def conv_pair(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """Two dense k x k convolutions, the body of ResNet's basic block (arXiv 1512.03385) at any inner width.

    The first carries the stride. The output is linear, as in MBConv.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of both convolutions.
    """
    return Block(layer, *_pair(layer, act, w, k))


@register("conv_stack", parameters=_PARAMETERS)
def conv_stack(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """Two stacked conv-BN-activation (LANA, arXiv 2107.10624), with an activation after both convolutions.

    Unlike ``conv_pair``, it suits layers that end in an activation themselves, as in ResNet and VGG. After a
    ReLU its output cannot be negative (or less than its input, if the layer has a residual), which costs
    much quality at layers with a linear output, such as MBConv.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of both convolutions.
    """
    return Block(layer, *_pair(layer, act, w, k), act())


def _has_no_residual(layer: Layer) -> bool:
    return is_image_layer(layer) and not layer.residual


@register("residual_pair", parameters=_PARAMETERS, fits=_has_no_residual)
def residual_pair(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """LANA's residual pair (arXiv 2107.10624): ResNet's basic block (arXiv 1512.03385) at any inner width.

    The convolutions of ``conv_pair`` with their own shortcut around both: the input if the shapes are equal,
    else a strided 1x1 convolution with batch-norm (option B of ResNet). There is no activation after the
    sum, so the output is linear, as in MBConv. It fits only layers without a residual: with one, the
    residual is the shortcut, and this would equal ``conv_pair``.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of both convolutions.
    """
    same = layer.input_shape == layer.output_shape
    shortcut = nn.Identity() if same else conv_bn(layer.in_channels, layer.out_channels, strided=layer)
    return Block(layer, Sum(nn.Sequential(*_pair(layer, act, w, k)), shortcut))


def _pair(layer: Layer, act: Activation, w: float, k: int) -> tuple[nn.Module, nn.Module]:
    hidden = width(layer.out_channels, w)
    return (
        conv_bn(layer.in_channels, hidden, k, strided=layer, act=act),
        conv_bn(hidden, layer.out_channels, k),
    )
