"""Layers with shapes as in real networks, for the suites."""

from __future__ import annotations

from lana_ray.networks.layers import Layer
from lana_ray.networks.layouts import Layout


def layer(
    before: tuple[int, ...],
    after: tuple[int, ...],
    *,
    residual: bool = False,
    name: str = "blocks.0",
    layout: Layout | None = None,
    offset: tuple[float, float] | None = (0.0, 0.0),
) -> Layer:
    """Returns a layer; by default images have channels first, and sequences are tokens [T, D]."""
    layout = layout or (Layout.CHANNELS_LAST if len(before) == 2 else Layout.CHANNELS_FIRST)
    return Layer(
        name=name, input_shape=before, output_shape=after, residual=residual, layout=layout, offset=offset
    )


RESIDUAL = layer((16, 8, 8), (16, 8, 8), residual=True)
PLAIN = layer((16, 8, 8), (16, 8, 8))
WIDER = layer((16, 6, 6), (24, 6, 6))
STRIDED = layer((16, 8, 8), (24, 4, 4))
UNEVEN = layer((8, 7, 5), (12, 4, 3))
IMAGES = [RESIDUAL, PLAIN, WIDER, STRIDED, UNEVEN]
SAME = layer((16, 8, 8), (24, 4, 4), offset=(1.0, 1.0))
"""Padded as in TensorFlow, with one pixel more below and to the right."""
LAST = layer((8, 6, 16), (8, 6, 16), residual=True, layout=Layout.CHANNELS_LAST)
LAST_STRIDED = layer((8, 7, 16), (4, 4, 24), layout=Layout.CHANNELS_LAST, offset=(1.0, 0.0), name="blocks.1")
SEQUENCE = layer((16, 10), (16, 10), residual=True, layout=Layout.CHANNELS_FIRST)
TOKENS = layer((10, 16), (10, 16), residual=True)
