"""Named pools and the candidates they give a layer."""

from __future__ import annotations

from collections.abc import Sequence

from lana_ray.errors import UserError
from lana_ray.layers import Layer
from lana_ray.ops.registry import TEACHER, Op, fits, parse_op

PRESETS: dict[str, tuple[str, ...]] = {
    "tiny": (
        "teacher",
        "identity",
        "mbconv_e3_k3",
        "mbconv_e2_k3",
        "mbconv_e1_k3",
        "fused_mbconv_e1_k3",
        "bottleneck_w0.25_k3",
        "conv_pair_w0.25_k3",
    ),
}
"""Operations by the pool's name."""


def pool(preset_or_ops: str | Sequence[str]) -> tuple[Op, ...]:
    """The operations of a preset or of a list of names, ``teacher`` always first, each once.

    Raises:
        UserError: for an unknown preset or operation.
    """
    if isinstance(preset_or_ops, str):
        if preset_or_ops not in PRESETS:
            raise UserError(f"unknown pool {preset_or_ops!r}; known: {', '.join(PRESETS)}")
        preset_or_ops = PRESETS[preset_or_ops]
    return tuple(dict.fromkeys(parse_op(name) for name in (TEACHER, *preset_or_ops)))


def candidates(preset_or_ops: str | Sequence[str], layer: Layer) -> tuple[Op, ...]:
    """Those of the pool's operations that fit the layer, ``teacher`` first.

    Raises:
        UserError: as ``pool``.
    """
    return tuple(op for op in pool(preset_or_ops) if fits(op, layer))
