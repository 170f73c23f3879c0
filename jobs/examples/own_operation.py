"""Example of your own operation: a box blur of each channel, and a pointwise convolution.

    lana-ray run jobs/quickstart.yaml \
      --set 'pool.modules=[jobs/examples/own_operation.py]' --set 'pool.ops=[identity, box_k3]'

``pytest jobs/examples/own_operation.py`` runs the tests that all operations pass.
"""

from __future__ import annotations

from torch import nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, conv_bn
from lana_ray.ops.registry import Activation, odd, register
from lana_ray.testing import OperationSuite


@register("box", parameters={"k": odd})
def box(layer: Layer, *, act: Activation, k: int) -> nn.Module:
    """A k x k mean of each channel, which has no weights, between two pointwise convolutions."""
    return Block(
        layer,
        conv_bn(layer.in_channels, layer.out_channels, 1, strided=layer, act=act),
        nn.AvgPool2d(k, stride=1, padding=k // 2, count_include_pad=False),
        conv_bn(layer.out_channels, layer.out_channels),
    )


class TestBox(OperationSuite):
    operations = ("box_k3", "box_k5")
