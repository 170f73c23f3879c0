"""Lambda layers: a pixel's surroundings as a small linear function instead of an attention map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.networks.layers import Layer
from lana_ray.ops.attention import bottleneck_around, few_pixels
from lana_ray.ops.blocks import conv_bn, width
from lana_ray.ops.registry import Activation, positive, register

_HEADS = 4
_KEYS = 16
_SCOPE = 7


# Not timm's LambdaLayer: it has a 3-D convolution, which is another exported operator.
class LambdaLayer(nn.Module):
    """The lambda convolution of LambdaNetworks (Bello, arXiv 2102.08602); [N, C, H, W] to [N, C, H, W].

    Each pixel's queries, one for every head, are multiplied by a matrix [keys, C / heads] that all heads
    share: the content lambda, values summed over the whole image by the softmax of their keys, plus the
    pixel's position lambda, a local 2-D convolution of the values with embeddings of the relative position.
    Queries and values have batch-norms, as published; the intra-depth is 1, the published default.

    16 keys, 4 heads and a scope of 7 x 7 pixels; the paper's ResNets have 23 x 23, on larger images.

    Args:
        channels: divisible by four, the number of heads.
        size: height and width of the image.
    """

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        depth, tokens = channels // _HEADS, math.prod(size)
        self.query_shape = (-1, _HEADS, _KEYS, tokens)
        self.key_shape = (-1, _KEYS, tokens)
        self.value_shape = (-1, depth, tokens)
        self.planes = (-1, 1, *size)
        self.position_shape = (-1, depth, _KEYS, tokens)
        self.merged, self.image = (-1, tokens, channels), (-1, channels, *size)
        self.queries = conv_bn(channels, _HEADS * _KEYS)
        self.keys = nn.Conv2d(channels, _KEYS, 1, bias=False)
        self.values = conv_bn(channels, depth)
        self.embeddings = nn.Parameter(torch.randn(_KEYS, 1, _SCOPE, _SCOPE) / math.sqrt(_KEYS * _SCOPE**2))

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries(x).reshape(self.query_shape).permute(0, 3, 1, 2)  # [N, T, heads, keys]
        keys = self.keys(x).reshape(self.key_shape).softmax(-1)
        values = self.values(x)
        content = keys @ values.reshape(self.value_shape).transpose(1, 2)  # [N, keys, depth]
        local = F.conv2d(values.reshape(self.planes), self.embeddings, padding=_SCOPE // 2)
        position = local.reshape(self.position_shape).permute(0, 3, 2, 1)  # [N, T, keys, depth]
        y = queries @ (content[:, None] + position)
        return y.reshape(self.merged).transpose(1, 2).reshape(self.image)


@register("lambda_bottleneck", parameters={"w": positive}, fits=few_pixels)
def lambda_bottleneck(layer: Layer, *, act: Activation, w: float) -> nn.Module:
    """Lambda bottleneck (Bello, arXiv 2102.08602): a ResNet bottleneck whose k x k part is a lambda layer.

    The output is linear, as in MBConv. A lambda layer's memory grows with the pixels, not with their square,
    but it has the same limit of ``MOST_TOKENS`` so that it fits the same layers as ``bot``.

    Args:
        w: inner width relative to the output's channels.
    """
    hidden = width(layer.out_channels, w)
    return bottleneck_around(LambdaLayer(hidden, layer.input_size), layer, hidden, act)
