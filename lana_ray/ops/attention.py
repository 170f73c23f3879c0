"""Self-attention over pixels or tokens: the vision transformer's block and the bottleneck transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, conv_bn, width
from lana_ray.ops.registry import Activation, count, is_image_layer, positive, register

MOST_TOKENS = 32 * 32
"""Layers with more pixels or tokens do not fit: time grows with the square of their number, and so does
memory if the attention maps are stored. At this limit, training takes 54 MiB per image for ``bot`` and 9 MiB
for ``vit_d64`` with torch's fused attention."""

# The bottleneck transformer's, as published.
_HEADS = 4
_LARGEST_HEADS = 32


def few_pixels(layer: Layer) -> bool:
    """Returns whether the layer takes images of at most ``MOST_TOKENS`` pixels, with a whole stride."""
    return is_image_layer(layer) and math.prod(layer.input_size) <= MOST_TOKENS


def _few_tokens(layer: Layer) -> bool:
    if layer.is_image:
        return is_image_layer(layer) and math.prod(layer.output_size) <= MOST_TOKENS
    return layer.is_tokens and layer.output_size[0] <= MOST_TOKENS


def _dimension(value: float) -> float:
    """Checks the dimension: it must be divisible by every allowed number of heads."""
    if value < _LARGEST_HEADS or value % _LARGEST_HEADS:
        raise ValueError(f"{value:g} must be a multiple of {_LARGEST_HEADS}")
    return int(value)


def _heads(value: float) -> float:
    if value not in (1, 2, 4, 8, 16, _LARGEST_HEADS):
        raise ValueError(f"{value:g} must be a power of 2 up to {_LARGEST_HEADS}")
    return int(value)


# Not timm's Attention: exported ONNX programs would compute its shapes and scale in every call.
class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., arXiv 1706.03762); [N, T, D] to [N, T, D].

    Args:
        inner: total width of all heads; defaults to D.
    """

    def __init__(self, tokens: int, dimension: int, heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or dimension
        depth = inner // heads
        self.merged = (-1, tokens, inner)
        self.split = (-1, tokens, 3, heads, depth)
        # Set explicitly, because exported ONNX programs would otherwise compute it in every call.
        self.scale = depth**-0.5
        self.qkv = nn.Linear(dimension, 3 * inner)
        self.project = nn.Linear(inner, dimension)

    def forward(self, x: Tensor) -> Tensor:
        # q, k and v are [N, heads, T, depth] each.
        q, k, v = self.qkv(x).reshape(self.split).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        projected: Tensor = self.project(y.transpose(1, 2).reshape(self.merged))
        return projected


# Not timm's Block: its dropouts stay in exported programs.
class TransformerBlock(nn.Module):
    """Pre-norm attention, then an MLP four times as wide, each with a shortcut; [N, T, D] to [N, T, D]."""

    def __init__(self, tokens: int, dimension: int, heads: int, act: Activation) -> None:
        super().__init__()
        wide = 4 * dimension
        self.mix = nn.Sequential(nn.LayerNorm(dimension), SelfAttention(tokens, dimension, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(dimension), nn.Linear(dimension, wide), act(), nn.Linear(wide, dimension)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x)
        y: Tensor = x + self.mlp(x)
        return y


class OverPixels(nn.Module):
    """Transformer blocks over the pixels of images of one size, with learnt positions; shape [N, D, H, W]."""

    def __init__(self, dimension: int, size: Sequence[int], *blocks: nn.Module) -> None:
        super().__init__()
        tokens = math.prod(size)
        self.sequence, self.image = (-1, dimension, tokens), (-1, dimension, *size)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, dimension))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x.reshape(self.sequence).transpose(1, 2) + self.positions)
        return y.transpose(1, 2).reshape(self.image)


@register("vit", parameters={"d": _dimension, "h": _heads, "n": count}, fits=_few_tokens)
def vit(layer: Layer, *, act: Activation, d: int, h: int, n: int) -> nn.Module:
    """Vision transformer (Dosovitskiy et al., arXiv 2010.11929): pre-norm blocks between two projections.

    On images the tokens are the layer's output pixels: the first projection, 1x1, carries the stride.
    Batch-norms follow both projections, the last one instead of ViT's final layer-norm. On tokens the
    layer-norm stays, as in a ViT's own blocks: there the tokens already carry their positions, and a class
    token is one of them. The MLPs use the teacher's activation.

    Args:
        d: dimension of the tokens inside.
        h: heads of the attention.
        n: number of blocks.
    """
    image = layer.is_image
    tokens = math.prod(layer.output_size) if image else layer.output_size[0]
    blocks = [TransformerBlock(tokens, d, h, act) for _ in range(n)]
    if image:
        return Block(
            layer,
            conv_bn(layer.in_channels, d, strided=layer),
            OverPixels(d, layer.output_size, *blocks),
            conv_bn(d, layer.out_channels),
        )
    return Block(
        layer,
        nn.Linear(layer.in_channels, d),
        *blocks,
        nn.LayerNorm(d),
        nn.Linear(d, layer.out_channels),
    )


# Not timm's BottleneckAttn: it pads and slices the relative logits, which exports more operators.
class RelativeAttention(nn.Module):
    """Self-attention over an image's pixels with relative positions; [N, C, H, W] to [N, C, H, W].

    A query is multiplied by each key plus the sum of two learnt vectors, one for the number of rows the key
    lies below, one for the number of columns to the right (figure 4 of arXiv 2101.11605). As published, there
    is no projection after the heads.

    Args:
        channels: divisible by four, the number of heads.
        size: height and width of the image.
    """

    row_steps: Tensor
    column_steps: Tensor

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        height, width = size
        depth, tokens = channels // _HEADS, height * width
        self.image = (-1, channels, height, width)
        self.split = (-1, 3, _HEADS, depth, tokens)
        self.grid = (-1, _HEADS, height, width, depth)
        self.along_rows = (-1, _HEADS, tokens, height, 1)
        self.along_columns = (-1, _HEADS, tokens, 1, width)
        self.map = (-1, _HEADS, tokens, tokens)
        self.scale = depth**-0.5
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.rows = nn.Parameter(self.scale * torch.randn(2 * height - 1, depth))
        self.columns = nn.Parameter(self.scale * torch.randn(2 * width - 1, depth))
        self.register_buffer("row_steps", _steps(height), persistent=False)
        self.register_buffer("column_steps", _steps(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # q, k and v are [N, heads, T, depth] each.
        q, k, v = self.qkv(x).reshape(self.split).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v, self._positions(q * self.scale), scale=self.scale)
        return y.transpose(2, 3).reshape(self.image)

    def _positions(self, q: Tensor) -> Tensor:
        """Returns the position term of the logits, [N, heads, T, T], for queries [N, heads, T, depth]."""
        grid = q.reshape(self.grid)
        rows = self.rows[self.row_steps].transpose(1, 2)  # [H, depth, H of the key]
        columns = self.columns[self.column_steps].transpose(1, 2)  # [W, depth, W of the key]
        by_row = (grid @ rows).reshape(self.along_rows)
        by_column = (grid.transpose(2, 3) @ columns).transpose(2, 3).reshape(self.along_columns)
        return (by_row + by_column).reshape(self.map)


def _steps(size: int) -> Tensor:
    """Returns the step from each place to each other, counted from the most negative one; [size, size]."""
    places = torch.arange(size)
    return places[None] - places[:, None] + size - 1


def bottleneck_around(mixer: nn.Module, layer: Layer, hidden: int, act: Activation) -> nn.Module:
    """Returns a ResNet bottleneck with ``mixer``, [N, hidden, H, W] to the same shape, as its k x k part.

    The stride is an average pooling after it, as in the bottleneck transformer; a window that reaches over
    the image's edge averages the pixels inside.
    """
    s = layer.stride
    return Block(
        layer,
        conv_bn(layer.in_channels, hidden, act=act),
        mixer,
        *([nn.AvgPool2d(s, ceil_mode=True, count_include_pad=False)] if s > 1 else []),
        nn.BatchNorm2d(hidden),
        act(),
        conv_bn(hidden, layer.out_channels),
    )


@register("bot", parameters={"w": positive}, fits=few_pixels)
def bot(layer: Layer, *, act: Activation, w: float) -> nn.Module:
    """Bottleneck transformer (Srinivas et al., arXiv 2101.11605): a bottleneck with self-attention inside.

    It has four heads and relative positions, as published. The output is linear, as in MBConv.

    Args:
        w: inner width relative to the output's channels.
    """
    hidden = width(layer.out_channels, w)
    return bottleneck_around(RelativeAttention(hidden, layer.input_size), layer, hidden, act)
