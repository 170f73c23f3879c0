"""What a warm start takes over, and how near the layer it brings a candidate."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from lana_ray.networks.layers import Layer, batch_statistics
from lana_ray.ops import Op, build_op, fits, parse_op, pool, warm_start, warmstart
from lana_ray.testing.layers import PLAIN, RESIDUAL, STRIDED, TOKENS, WIDER, layer

STARTED = [
    *(op.name for op in pool("tiny") if op.family not in ("teacher", "identity")),
    "conv_stack_w0.5_k3",
    "residual_pair_w0.5_k3",
    "repvgg_w0.5_k3",
    "split_attention_w0.5_k3",
    "grouped_bottleneck_w1_k3_g4",
    "vit_d32_h4_n1",
    "bot_w0.5",
    "lambda_bottleneck_w0.5",
]
CASES = [(op, at) for op in STARTED for at in (RESIDUAL, STRIDED) if fits(parse_op(op), at)]


def _teacher(op: str, at: Layer) -> nn.Module:
    """A layer as after a training: batch-norms with channels that differ much."""
    module = build_op(parse_op(op), at, seed=11, act=nn.ReLU6)
    generator = torch.Generator().manual_seed(2)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.copy_(torch.rand(part.num_features, generator=generator) * 3 + 0.5)
            part.bias.data.copy_(torch.randn(part.num_features, generator=generator))
    with batch_statistics(module):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.track_running_stats, part.momentum = True, 1.0
        module(_images(at, seed=3))
    return module.eval()


def _images(at: Layer, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(size, *at.input_shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def _started(op: str, at: Layer, teacher: nn.Module) -> nn.Module:
    candidate = build_op(parse_op(op), at, seed=0, act=nn.ReLU6, teacher=teacher)
    inputs = _images(at)
    with torch.no_grad():
        warm_start(candidate, at, teacher, inputs, teacher(inputs))
    return candidate


@torch.no_grad()
def _error(candidate: nn.Module, teacher: nn.Module, at: Layer) -> float:
    x = _images(at, seed=1)
    y = teacher(x)
    return float((candidate(x) - y).square().sum() / y.square().sum())


def _last_norm(module: nn.Module) -> nn.BatchNorm2d:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)][-1]


@pytest.mark.parametrize("at", [RESIDUAL, WIDER, STRIDED], ids=["residual", "wider", "strided"])
@pytest.mark.parametrize(
    "op", ["mbconv_e3_k3", "mbconv_e1_k5", "fused_mbconv_e2_k3", "bottleneck_w1_k3", "conv_pair_w1_k3"]
)
def test_equal_structure_reproduces_the_teacher(op: str, at: Layer) -> None:
    teacher = _teacher(op, at)
    candidate = _started(op, at, teacher)
    assert candidate.training
    assert _error(candidate, teacher, at) < 0.02
    assert _error(candidate.eval(), teacher, at) < 0.02


@pytest.mark.parametrize(
    "op", ["mbconv_e6_k3", "mbconv_e3_k5", "bottleneck_w6_k3", "grouped_bottleneck_w6_k3_g8"]
)
def test_what_contains_the_teacher_reproduces_it(op: str) -> None:
    teacher = _teacher("mbconv_e3_k3", STRIDED)
    assert _error(_started(op, STRIDED, teacher), teacher, STRIDED) < 0.02


@pytest.mark.parametrize(
    ("op", "at"), CASES, ids=[f"{op}-{'residual' if at.residual else 'strided'}" for op, at in CASES]
)
def test_every_candidate_starts_better_than_at_random(op: str, at: Layer) -> None:
    teacher = _teacher("mbconv_e6_k5", at)
    fresh = build_op(parse_op(op), at, seed=0, act=nn.ReLU6)
    start = _error(_started(op, at, teacher), teacher, at)
    assert start < 0.9 * _error(fresh, teacher, at)


@pytest.mark.parametrize("at", [TOKENS, layer((10, 16), (10, 24))], ids=["residual", "wider"])
def test_what_a_linear_layer_can_tell_of_tokens_is_solved(at: Layer) -> None:
    """A teacher that is linear in what the candidate's last layer reads is reproduced."""
    candidate = build_op(parse_op("vit_d64_h4_n1"), at, seed=0)
    teacher = copy.deepcopy(candidate)
    with torch.no_grad():
        for parameter in [*teacher.parameters()][-2:]:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        warm_start(candidate, at, teacher, _images(at), teacher(_images(at)))
    assert candidate.training
    assert _error(candidate, teacher, at) < 0.05
    other = _started("vit_d32_h4_n1", at, teacher)
    assert _error(other, teacher, at) < 0.5 * _error(
        build_op(parse_op("vit_d32_h4_n1"), at, seed=0), teacher, at
    )


def test_a_linear_layer_that_is_not_added_stays() -> None:
    candidate = nn.Sequential(nn.Linear(16, 16), nn.Softmax(-1))
    before = copy.deepcopy(candidate.state_dict())
    warm_start(candidate, TOKENS, nn.Identity(), _images(TOKENS), _images(TOKENS))
    assert all(torch.equal(before[key], value) for key, value in candidate.state_dict().items())


@pytest.mark.parametrize(
    ("op", "like", "at"),
    [
        ("repvgg_w1_k3", "conv_pair_w1_k3", RESIDUAL),
        ("repvgg_w1_k3", "conv_pair_w1_k3", STRIDED),
        ("residual_pair_w1_k3", "conv_pair_w1_k3", STRIDED),
        ("residual_pair_w1_k3", "residual_pair_w1_k3", PLAIN),
    ],
)
def test_the_main_branch_reproduces_the_teacher(op: str, like: str, at: Layer) -> None:
    teacher = _teacher(like, at)
    assert _error(_started(op, at, teacher), teacher, at) < 0.02


@pytest.mark.parametrize("at", [RESIDUAL, STRIDED], ids=["residual", "strided"])
def test_what_is_no_chain_is_solved_from_its_last_convolution(at: Layer) -> None:
    teacher = _teacher("split_attention_w0.5_k3", at)
    candidate = build_op(parse_op("split_attention_w0.5_k3"), at, seed=11, act=nn.ReLU6)
    candidate.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        last = [m for m in candidate.modules() if isinstance(m, nn.Conv2d)][-1]
        last.weight.normal_()
        warm_start(candidate, at, teacher, _images(at), teacher(_images(at)))
    assert _error(candidate, teacher, at) < 0.02


def test_copying_helps_beyond_the_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = _teacher("mbconv_e6_k3", STRIDED)
    copied = _error(_started("mbconv_e3_k3", STRIDED, teacher), teacher, STRIDED)
    monkeypatch.setattr(warmstart, "_inherit", lambda *_: False)
    solved = _error(_started("mbconv_e3_k3", STRIDED, teacher), teacher, STRIDED)
    assert copied < 0.8 * solved


def test_the_channels_that_matter_are_kept() -> None:
    teacher = _teacher("mbconv_e4_k3", WIDER)
    convs = [m for m in teacher.modules() if isinstance(m, nn.Conv2d)]
    matter = torch.arange(1, 64, 2)  # every other expanded channel
    with torch.no_grad():
        convs[2].weight[:, 0::2] *= 1e-4
        for part in teacher.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.bias.fill_(1)  # no channel is dead
    candidate = _started("mbconv_e2_k3", WIDER, teacher)
    own = [m for m in candidate.modules() if isinstance(m, nn.Conv2d)]
    assert torch.equal(own[0].weight, convs[0].weight[matter])
    assert torch.equal(own[1].weight, convs[1].weight[matter])
    assert _error(candidate, teacher, WIDER) < 0.1


@pytest.mark.parametrize("at", [RESIDUAL, STRIDED], ids=["residual", "strided"])
def test_without_a_solution_the_last_norm_has_the_targets_statistics(
    at: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmstart, "_MOST_FEATURES", 4)
    teacher = _teacher("mbconv_e3_k3", at)
    candidate = _started("conv_pair_w0.5_k3", at, teacher)
    with torch.no_grad():
        inputs = _images(at)
        target = teacher(inputs) - (inputs if at.residual else 0)
        output = candidate(inputs) - (inputs if at.residual else 0)
    norm = _last_norm(candidate)
    assert torch.allclose(norm.weight, target.std((0, 2, 3)))
    assert torch.allclose(norm.bias, target.mean((0, 2, 3)))
    assert torch.allclose(output.mean((0, 2, 3)), target.mean((0, 2, 3)), atol=1e-3)
    assert torch.allclose(output.std((0, 2, 3)), target.std((0, 2, 3)), rtol=1e-2)


def test_training_and_evaluation_agree_on_the_batch() -> None:
    teacher = _teacher("mbconv_e6_k3", STRIDED)
    candidate = _started("bottleneck_w0.25_k3", STRIDED, teacher)
    with torch.no_grad():
        assert torch.allclose(candidate(_images(STRIDED)), candidate.eval()(_images(STRIDED)), atol=2e-2)
    assert all(m.momentum == 0.1 for m in candidate.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_solution_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = _teacher("mbconv_e6_k3", STRIDED)
    whole = _started("conv_pair_w0.5_k3", STRIDED, teacher).state_dict()
    monkeypatch.setattr(warmstart, "_CHUNK", 1)
    chunks = _started("conv_pair_w0.5_k3", STRIDED, teacher).state_dict()
    assert all(torch.allclose(whole[key], chunks[key], rtol=1e-3, atol=1e-4) for key in whole)


def test_the_teacher_and_the_mode_are_left_alone() -> None:
    teacher = _teacher("mbconv_e6_k3", STRIDED)
    before = copy.deepcopy(teacher.state_dict())
    candidate = build_op(parse_op("mbconv_e3_k3"), STRIDED, seed=0).eval()
    inputs = _images(STRIDED)
    warm_start(candidate, STRIDED, teacher, inputs, teacher(inputs))
    assert not any(module.training for module in candidate.modules())
    assert not any(module._forward_pre_hooks for module in (*teacher.modules(), *candidate.modules()))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_identity_and_what_does_not_end_in_a_batch_norm_stay_as_they_are() -> None:
    teacher = _teacher("mbconv_e6_k3", RESIDUAL)
    inputs = _images(RESIDUAL)
    identity = build_op(Op("identity"), RESIDUAL, seed=0)
    warm_start(identity, RESIDUAL, teacher, inputs, teacher(inputs))
    assert torch.equal(identity(inputs), inputs)
    bounded = nn.Sequential(build_op(parse_op("split_attention_w1_k3"), RESIDUAL, seed=0), nn.Sigmoid())
    before = copy.deepcopy(bounded.state_dict())
    warm_start(bounded, RESIDUAL, teacher, inputs, teacher(inputs))
    assert all(torch.equal(before[key], value) for key, value in bounded.state_dict().items())


def test_a_silent_teacher_gives_finite_weights() -> None:
    teacher = _teacher("mbconv_e6_k3", STRIDED)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    candidate = _started("mbconv_e3_k3", STRIDED, teacher)
    assert all(value.isfinite().all() for value in candidate.state_dict().values())
    assert _last_norm(candidate).bias.abs().max() == 0


def test_a_timm_block_hands_its_weights_down() -> None:
    teacher = timm.create_model("efficientnet_lite0").blocks[1][1].eval()
    at = layer((24, 8, 8), (24, 8, 8), residual=True)
    candidate = _started("mbconv_e6_k3", at, teacher)
    own = [m.weight for m in candidate.modules() if isinstance(m, nn.Conv2d)]
    assert torch.equal(own[0], teacher.conv_pw.weight)
    assert torch.equal(own[1], teacher.conv_dw.weight)
