"""Dense convolutions: the ResNet bottleneck and what stacks two k x k convolutions."""

from __future__ import annotations

from torch import nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, Sum, conv_bn, width
from lana_ray.ops.registry import Activation, is_image_layer, odd, positive, register

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
        conv_bn(hidden, hidden, k, strided=layer, act=act),
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
    return Block(layer, *_pair(layer, act, w, k))


@register("conv_stack", parameters=_PARAMETERS)
def conv_stack(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """Two stacked conv-BN-activation (LANA, arXiv 2107.10624), the activation behind both convolutions.

    So it differs from ``conv_pair``, and suits layers that end in an activation themselves, as ResNet's and
    VGG's do. Behind a ReLU it cannot answer less than zero (less than its input, where there is a
    residual), which costs it much at layers with a linear output, as MBConv's.

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

    The convolutions of ``conv_pair`` with a shortcut of their own around both: the input where the shapes
    are equal, else a strided 1x1 convolution with batch-norm (option B of ResNet). There is no activation
    behind the sum, so the output is linear, as MBConv's. It exists only for layers without a residual:
    where there is one, that is the shortcut, and this would be ``conv_pair`` once more.

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
