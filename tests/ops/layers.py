"""Layers of the shapes that networks have."""

from __future__ import annotations

from lana_ray.layers import Layer


def layer(
    before: tuple[int, ...], after: tuple[int, ...], *, residual: bool = False, name: str = "blocks.0"
) -> Layer:
    return Layer(name=name, input_shape=before, output_shape=after, residual=residual)


RESIDUAL = layer((16, 8, 8), (16, 8, 8), residual=True)
PLAIN = layer((16, 8, 8), (16, 8, 8))
WIDER = layer((16, 6, 6), (24, 6, 6))
STRIDED = layer((16, 8, 8), (24, 4, 4))
UNEVEN = layer((8, 7, 5), (12, 4, 3))
IMAGES = [RESIDUAL, PLAIN, WIDER, STRIDED, UNEVEN]
TOKENS = layer((10, 16), (10, 16), residual=True)
