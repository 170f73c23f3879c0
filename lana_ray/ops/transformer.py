"""A transformer block whose attention and MLP are narrower than the layer's tokens."""

from __future__ import annotations

from torch import Tensor, nn

from lana_ray.errors import UserError
from lana_ray.networks.layers import Layer
from lana_ray.ops.attention import MOST_TOKENS, SelfAttention
from lana_ray.ops.blocks import width
from lana_ray.ops.registry import Activation, register

_DEPTHS = (64, 32, 16, 8)
"""Head depths to try, largest first: the first that divides the attention's width is used."""


def _share(value: float) -> float:
    if value < 0:
        raise ValueError(f"{value:g} must not be negative")
    return value


def _few_tokens_of_one_width(layer: Layer) -> bool:
    equal = layer.in_channels == layer.out_channels
    return layer.is_tokens and equal and layer.input_size[0] <= MOST_TOKENS


class Transformer(nn.Module):
    """Pre-norm parts in a row, each with its input added; [N, T, D] to [N, T, D]."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part(x)
        return x


@register("transformer", parameters={"a": _share, "m": _share}, fits=_few_tokens_of_one_width)
def transformer(layer: Layer, *, act: Activation, a: float, m: float) -> nn.Module:
    """The vision transformer's block (Dosovitskiy et al., arXiv 2010.11929) at other widths.

    Unlike ``vit``, which has its own dimension, it keeps the layer's tokens: only the inside of its attention
    and of its MLP has another width, and either can be left out. Heads have up to 64 channels. A ViT's own
    block is ``transformer_a1_m4``.

    Args:
        a: width of the attention relative to the tokens'; 0 for none.
        m: width of the MLP relative to the tokens'; 0 for none.

    Raises:
        UserError: if both are 0.
    """
    if not a and not m:
        raise UserError(
            "invalid_setting", "operation 'transformer_a0_m0': a and m cannot both be 0; use identity"
        )
    dimension = layer.in_channels
    parts = []
    if a:
        inner = width(dimension, a)
        heads = inner // next(depth for depth in _DEPTHS if inner % depth == 0)
        attention = SelfAttention(layer.input_size[0], dimension, heads, inner)
        parts.append(nn.Sequential(nn.LayerNorm(dimension), attention))
    if m:
        hidden = width(dimension, m)
        mlp = (nn.Linear(dimension, hidden), act(), nn.Linear(hidden, dimension))
        parts.append(nn.Sequential(nn.LayerNorm(dimension), *mlp))
    return Transformer(*parts)
