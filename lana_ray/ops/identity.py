"""The operation that costs nothing."""

from __future__ import annotations

from torch import nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.registry import Activation, register


def _keeps_shape(layer: Layer) -> bool:
    return layer.input_shape == layer.output_shape


@register("identity", fits=_keeps_shape, any_layout=True)
def identity(layer: Layer, *, act: Activation) -> nn.Module:
    """Leaves the layer out (LANA, arXiv 2107.10624, section 3.1); fits only if the shapes are equal."""
    return nn.Identity()
