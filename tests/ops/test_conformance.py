"""The operations of this package hold to what every one must; a new family joins by its name in ``OPS``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lana_ray.ops import FAMILIES, Op, build_op, parse_op, pool
from lana_ray.ops.blocks import width
from lana_ray.testing import OperationSuite
from lana_ray.testing.layers import PLAIN, RESIDUAL, WIDER
from lana_ray.testing.operations import teacher_of

OPS = [
    *pool("tiny"),
    *map(
        parse_op,
        [
            "mbconv_e6_k5",
            "mbconv_e0.5_k1",
            "mbconv_e1_k3_se0.25",
            "mbconv_e3_k3_se0.04",
            "fused_mbconv_e3_k5_se0.25",
            "bottleneck_w0.0625_k7",
            "bottleneck_w2_k1",
            "conv_pair_w1_k1",
            "conv_pair_w0.5_k5",
            "conv_stack_w0.5_k3",
            "residual_pair_w0.5_k3",
            "repvgg_w1_k3",
            "repvgg_w0.25_k1",
            "split_attention_w0.5_k3",
            "grouped_bottleneck_w1_k3_g4",
            "grouped_bottleneck_w0.25_k5_g16",
            "transformer_a1_m4",
            "vit_d32_h4_n1",
            "bot_w0.5",
            "lambda_bottleneck_w0.5",
            "pruned_w0.5",
        ],
    ),
]


def test_every_family_is_tried() -> None:
    assert {op.family for op in OPS} == set(FAMILIES)


class TestOperations(OperationSuite):
    operations = tuple(op.name for op in OPS)


def test_the_teacher_is_copied() -> None:
    teacher = teacher_of(RESIDUAL)
    copy = build_op(Op("teacher"), RESIDUAL, seed=0, teacher=teacher)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in teacher.parameters() if parameter.dim() == 4)


def test_the_teacher_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0: the operation 'teacher' needs the layer's module"):
        build_op(Op("teacher"), RESIDUAL, seed=0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0: identity does not fit"):
        build_op(Op("identity"), WIDER, seed=0)


def test_the_activation_is_the_callers() -> None:
    module = build_op(parse_op("mbconv_e3_k3_se0.25"), PLAIN, seed=0, act=nn.SiLU)
    kinds = {type(part) for part in module.modules()}
    assert nn.SiLU in kinds
    assert nn.ReLU not in kinds


@pytest.mark.parametrize(
    ("channels", "factor", "expected"),
    [(16, 6, 96), (20, 6, 120), (16, 0.0625, 8), (40, 0.25, 16), (27, 1, 32)],
)
def test_widths_are_multiples_of_eight(channels: int, factor: float, expected: int) -> None:
    assert width(channels, factor) == expected


@pytest.mark.parametrize(("channels", "expected"), [(16, 24), (40, 48), (100, 96)])
def test_widths_are_multiples_of_what_is_asked_for(channels: int, expected: int) -> None:
    assert width(channels, 1, 24) == expected
