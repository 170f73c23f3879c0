"""Named pools and the candidates they give a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lana_ray.errors import UserError
from lana_ray.networks.layers import Layer
from lana_ray.ops.check import fits_and_works
from lana_ray.ops.registry import TEACHER, Op, parse_op

DENSE = (
    "bottleneck",
    "conv_pair",
    "conv_stack",
    "residual_pair",
    "repvgg",
)
"""Families of dense convolutions with parameters ``w`` and ``k``; a family added here joins ``lana``."""

_PRUNED = tuple(f"pruned_w{w}" for w in (0.75, 0.5, 0.25))
_WIDTHS = (1 / 16, 1 / 10, 1 / 8, 1 / 5, 1 / 4, 1 / 2, 1, 2, 3, 4)

PRESETS: dict[str, tuple[str, ...]] = {
    "tiny": (
        "teacher",
        "identity",
        "pruned_w0.5",
        "mbconv_e3_k3",
        "mbconv_e1_k3",
        "fused_mbconv_e1_k3",
        "bottleneck_w0.25_k3",
        "conv_pair_w0.25_k3",
        "transformer_a0.5_m2",
        "transformer_a0.5_m1",
        "transformer_a0.25_m1",
        "transformer_a0.5_m0",
        "transformer_a0_m2",
    ),
    "small": (
        "teacher",
        "identity",
        *_PRUNED,
        "mbconv_e1_k3",
        "mbconv_e1_k5",
        "mbconv_e1_k3_se0.25",
        "mbconv_e2_k3",
        "mbconv_e3_k3",
        "mbconv_e3_k5",
        "mbconv_e3_k3_se0.04",
        "mbconv_e6_k3",
        "mbconv_e6_k5",
        "fused_mbconv_e1_k3",
        "fused_mbconv_e2_k3",
        "fused_mbconv_e3_k3",
        "bottleneck_w0.25_k3",
        "bottleneck_w0.5_k3",
        "bottleneck_w1_k3",
        "conv_pair_w0.125_k3",
        "conv_pair_w0.25_k3",
        "conv_pair_w0.5_k3",
        "bot_w0.5",
        *(f"transformer_a{a:g}_m{m:g}" for a in (1, 0.5, 0.25) for m in (3, 2, 1, 0.5)),
        *(f"transformer_a{a:g}_m0" for a in (1, 0.5, 0.25)),
        *(f"transformer_a0_m{m:g}" for m in (4, 2, 1)),
    ),
    "lana": (
        "teacher",
        "identity",
        *_PRUNED,
        *(
            f"{family}_e{e}_k{k}{se}"
            for family in ("mbconv", "fused_mbconv")
            for e in (1, 3, 6)
            for k in (1, 3, 5)
            for se in ("", "_se0.025", "_se0.04")
        ),
        *(f"{family}_w{w:g}_k{k}" for family in DENSE for w in _WIDTHS for k in (1, 3, 5, 7)),
        *(f"vit_d{2**power}_h{h}_n{n}" for power in range(5, 11) for h in (4, 8, 16) for n in (1, 2)),
        *(f"{family}_w{w:g}" for family in ("bot", "lambda_bottleneck") for w in _WIDTHS[4:]),
    ),
}
"""Operations of each named pool; a layer gets those that fit it.

``tiny`` is for trials, with 8 for images and 8 for tokens; ``small``, with 24 for images and 23 for tokens,
has a few operations of every kind and cost; ``lana`` has all the grids printed in LANA (arXiv 2107.10624),
304 operations, and the layer's own module at three widths.
"""


def pool(preset_or_ops: str | Sequence[str]) -> tuple[Op, ...]:
    """The operations of a preset or of names, without duplicates, ``teacher`` first; UserError if unknown."""
    if isinstance(preset_or_ops, str):
        if preset_or_ops not in PRESETS:
            raise UserError(
                "unknown_name", f"unknown pool {preset_or_ops!r}; available: {', '.join(PRESETS)}"
            )
        preset_or_ops = PRESETS[preset_or_ops]
    return tuple(dict.fromkeys(parse_op(name) for name in (TEACHER, *preset_or_ops)))


def candidates(preset_or_ops: str | Sequence[str], layer: Layer, teacher: nn.Module) -> tuple[Op, ...]:
    """Returns the pool's operations that fit the layer, ``teacher`` first.

    Args:
        teacher: the layer's own module.

    Raises:
        UserError: as ``pool``, and as ``check.fits_and_works`` for the user's own operations.
    """
    return tuple(op for op in pool(preset_or_ops) if fits_and_works(op, layer, teacher))
