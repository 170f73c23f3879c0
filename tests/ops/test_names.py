"""Names of operations, and the pools they form."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lana_ray.config.pool import PoolConfig
from lana_ray.networks.layers import Layer
from lana_ray.networks.layouts import Layout
from lana_ray.ops import PRESETS, Op, build_op, candidates, fits, parse_op, pool
from lana_ray.ops.presets import DENSE
from lana_ray.testing.layers import IMAGES, LAST, PLAIN, RESIDUAL, STRIDED, TOKENS, layer

from ..errors import refuses

_ODD = st.integers(0, 8).map(lambda n: 2 * n + 1)
_POSITIVE = st.one_of(st.integers(1, 64), st.integers(1, 10**9).map(lambda n: n / 10**6))
_SHARE = st.integers(0, 1000).map(lambda n: n / 1000)


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


@given(st.sampled_from(["mbconv", "fused_mbconv"]), _POSITIVE, _ODD, _SHARE)
def test_inverted_residual_names_round_trip(family: str, e: float, k: int, se: float) -> None:
    name = f"{family}_e{_number(e)}_k{k}" + (f"_se{_number(se)}" if se else "")
    op = parse_op(name)
    assert op.name == name
    assert parse_op(op.name) == op
    assert op.parameters == {"e": e, "k": k} | ({"se": se} if se else {})


@given(
    st.sampled_from(["bottleneck", "conv_pair", "conv_stack", "residual_pair", "repvgg", "split_attention"]),
    _POSITIVE,
    _ODD,
)
def test_convolution_names_round_trip(family: str, w: float, k: int) -> None:
    op = parse_op(f"{family}_w{_number(w)}_k{k}")
    assert op.name == f"{family}_w{_number(w)}_k{k}"
    assert parse_op(op.name) == op


@pytest.mark.parametrize("name", ["teacher", "identity"])
def test_names_without_parameters(name: str) -> None:
    assert parse_op(name) == Op(name)
    assert parse_op(name).name == name


def test_a_name_has_one_canonical_form() -> None:
    same = {parse_op(n) for n in ("mbconv_e3_k3", "mbconv_k3_e3.0", "mbconv_se0_e3_k3")}
    assert [op.name for op in same] == ["mbconv_e3_k3"]


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("mbcnov_e3_k3", "unknown_name", "mbconv?"),
        ("fused_mbcon_e3_k3", "unknown_name", "fused_mbconv?"),
        ("conv_3x3", "unknown_name", "teacher, "),
        ("xyz", "unknown_name", "teacher, "),
        ("", "unknown_name", "teacher, "),
        ("mbconv_e3_k3_w2", "unknown_name", "'w'; write mbconv_e…_k…[_se…]"),
        ("mbconv_e3", "invalid_setting", "'k'"),
        ("mbconv_e3_k3_k5", "invalid_setting", "'k5'"),
        ("mbconv_e3_k-3", "invalid_setting", "'k-3'"),
        ("mbconv_e3_k3_", "invalid_setting", "''"),
        ("mbconv_e3_k4", "invalid_setting", "k 4"),
        ("mbconv_e3_k2.5", "invalid_setting", "k 2.5"),
        ("mbconv_e0_k3", "invalid_setting", "e 0"),
        ("mbconv_e3_k3_se2", "invalid_setting", "se 2"),
        ("pruned_w1", "invalid_setting", "w 1"),
        ("pruned_w0", "invalid_setting", "w 0"),
        ("grouped_bottleneck_w1_k3_g0", "invalid_setting", "g 0"),
        ("grouped_bottleneck_w1_k3_g1.5", "invalid_setting", "g 1.5"),
        ("mbconv_e" + "9" * 400 + "_k3", "invalid_setting", "'e999"),
        ("vit_d48_h4_n1", "invalid_setting", "d 48 must be a multiple of 32"),
        ("vit_d64_h3_n1", "invalid_setting", "h 3 must be a power of 2 up to 32"),
        ("vit_d64_h4_n1.5", "invalid_setting", "n 1.5"),
        ("vit_d64_h4", "invalid_setting", "'n' is missing; write vit_d…_h…_n…"),
        ("transformer_a0.5", "invalid_setting", "'m' is missing; write transformer_a…_m…"),
        ("bottle_w1_k3", "unknown_name", "bottleneck?"),
        ("identity_k3", "unknown_name", "identity takes no parameters"),
        ("teacher_k3", "unknown_name", "teacher takes no parameters"),
    ],
)
def test_wrong_names_are_explained(name: str, code: str, named: str) -> None:
    with refuses(code, repr(name), named):
        parse_op(name)


def test_presets_are_canonical_and_start_with_the_teacher() -> None:
    for name, ops in PRESETS.items():
        assert tuple(op.name for op in pool(name)) == ops
        assert ops[0] == "teacher"


def test_presets_have_the_sizes_they_promise() -> None:
    sizes = {name: len(pool(name)) for name in PRESETS}
    inverted, attention, pruned = 2 * 3 * 3 * 3, 6 * 3 * 2 + 2 * 6, 3
    lana = 2 + pruned + inverted + len(DENSE) * 10 * 4 + attention
    assert sizes == {"tiny": 8 + 5, "small": 24 + 18, "lana": lana}


def test_presets_offer_as_much_to_tokens_as_to_images() -> None:
    block = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    inverted = build_op(parse_op("mbconv_e6_k3"), RESIDUAL, seed=0)
    for name, images, tokens in (("tiny", 8, 8), ("small", 24, 23)):
        assert len(candidates(name, RESIDUAL, inverted)) == images
        offered = candidates(name, TOKENS, block)
        assert len(offered) == tokens
        assert {op.family for op in offered} == {"teacher", "identity", "pruned", "transformer"}


def test_channels_last_has_the_same_candidates_as_channels_first() -> None:
    for name in PRESETS:
        first = candidates(name, LAST.usual, nn.Identity())
        assert candidates(name, LAST, nn.Identity()) == first
        assert len(first) > 5


def test_a_layer_of_unknown_layout_has_what_needs_none() -> None:
    unknown = layer((16, 8, 8), (16, 8, 8), layout=Layout.UNKNOWN)
    assert [op.name for op in candidates("lana", unknown, nn.Identity())] == ["teacher", "identity"]


def test_a_stride_that_sizes_only_suggest_has_no_convolutions() -> None:
    valid = layer((16, 8, 8), (16, 3, 3), offset=None)
    assert [op.name for op in candidates("lana", valid, nn.Identity())] == ["teacher"]


def test_the_configuration_knows_every_preset() -> None:
    assert get_args(PoolConfig.model_fields["preset"].annotation) == tuple(PRESETS)


def test_a_pool_of_names_puts_the_teacher_first_and_each_once() -> None:
    ops = pool(["mbconv_e3_k3", "teacher", "mbconv_k3_e3", "identity"])
    assert [op.name for op in ops] == ["teacher", "mbconv_e3_k3", "identity"]


def test_an_unknown_pool_is_refused() -> None:
    with refuses("unknown_name", "'tinny'", "tiny, small, lana"):
        pool("tinny")


def test_identity_needs_equal_shapes() -> None:
    assert [fits(Op("identity"), x) for x in (RESIDUAL, PLAIN, TOKENS, STRIDED)] == [True, True, True, False]
    assert "identity" in {op.name for op in candidates("tiny", PLAIN, nn.Identity())}
    assert "identity" not in {op.name for op in candidates("tiny", STRIDED, nn.Identity())}


@pytest.mark.parametrize(
    "other", [TOKENS, layer((8, 8, 8), (8, 16, 16)), layer((8, 8, 8), (8, 5, 5)), layer((8, 8, 8), (8, 8, 4))]
)
def test_convolutions_need_images_and_a_whole_stride(other: Layer) -> None:
    op = parse_op("mbconv_e3_k3")
    assert all(fits(op, image) for image in IMAGES)
    assert not fits(op, other)
