"""The layer itself with fewer hidden channels: which go, where, and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import convnext, regnet, resnest, resnet, vision_transformer
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.registry import metered
from lana_ray.deploy import to_onnx, to_program
from lana_ray.networks.layers import Layer
from lana_ray.ops import build_op, fits, parse_op, warm_start
from lana_ray.testing.layers import layer

HALF = parse_op("pruned_w0.5")


@dataclass(frozen=True)
class Case:
    """A layer, its module, and what must be found out about it."""

    make: Callable[[], Any]
    at: Layer
    reads: Mapping[str, tuple[str, int]]
    """What reads hidden channels, and the tensor whose entries are those channels, so many times over."""
    shapes: Mapping[str, list[int]]
    """Of tensors at half the width."""


def _downsample(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))


_SE = partial(efficientnet.SqueezeExcite, rd_ratio=0.25)
_HARD_SE = partial(_SE, gate_layer=nn.Hardsigmoid, force_act_layer=nn.ReLU)
_SQUEEZED = {"conv_pwl": ("bn2.weight", 1), "se.conv_reduce": ("bn2.weight", 1)}
_IN_TWO, _IN_FOUR = ("conv2.bn0.weight", 2), ("conv2.bn0.weight", 4)


class _Wired(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], read: int = 32) -> None:
        super().__init__()
        self.first, self.second, self._between = nn.Conv2d(8, 32, 1), nn.Conv2d(read, 8, 1), between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self._between(self.first(x)))
        return y


CASES = {
    "mbconv": Case(
        partial(efficientnet.InvertedResidual, 16, 24, stride=2, pad_type="same", exp_ratio=6),
        layer((16, 8, 8), (24, 4, 4)),
        {"conv_pwl": ("bn2.weight", 1)},
        {"conv_pw.weight": [48, 16, 1, 1], "conv_dw.weight": [48, 1, 3, 3], "bn1.bias": [48]},
    ),
    "mbconv_se": Case(
        partial(efficientnet.InvertedResidual, 24, 24, exp_ratio=4, se_layer=_SE, act_layer=nn.SiLU),
        layer((24, 6, 6), (24, 6, 6), residual=True),
        _SQUEEZED,
        {"se.conv_reduce.weight": [24, 48, 1, 1], "se.conv_expand.weight": [48, 24, 1, 1]},
    ),
    "mobilenetv3": Case(
        partial(
            efficientnet.InvertedResidual, 16, 16, exp_ratio=3, se_layer=_HARD_SE, act_layer=nn.Hardswish
        ),
        layer((16, 6, 6), (16, 6, 6), residual=True),
        _SQUEEZED,
        {"bn1.running_var": [24], "conv_pwl.weight": [16, 24, 1, 1]},
    ),
    "fused_mbconv": Case(
        partial(efficientnet.EdgeResidual, 16, 24, exp_ratio=4, act_layer=nn.SiLU),
        layer((16, 6, 6), (24, 6, 6)),
        {"conv_pwl": ("bn1.weight", 1)},
        {"conv_exp.weight": [32, 16, 3, 3], "conv_pwl.weight": [24, 32, 1, 1]},
    ),
    "basic": Case(
        partial(resnet.BasicBlock, 32, 32),
        layer((32, 5, 5), (32, 5, 5), residual=True),
        {"conv2": ("bn1.weight", 1)},
        {"conv1.weight": [16, 32, 3, 3], "conv2.weight": [32, 16, 3, 3]},
    ),
    "basic_strided": Case(
        lambda: resnet.BasicBlock(16, 32, stride=2, downsample=_downsample(16, 32)),
        layer((16, 8, 8), (32, 4, 4)),
        {"conv2": ("bn1.weight", 1)},
        {"conv1.weight": [16, 16, 3, 3], "downsample.0.weight": [32, 16, 1, 1]},
    ),
    "bottleneck": Case(
        partial(resnet.Bottleneck, 64, 16),
        layer((64, 5, 5), (64, 5, 5), residual=True),
        {"conv2": ("bn1.weight", 1), "conv3": ("bn2.weight", 1)},
        {"conv1.weight": [8, 64, 1, 1], "conv2.weight": [8, 8, 3, 3], "conv3.weight": [64, 8, 1, 1]},
    ),
    "resnext": Case(
        partial(resnet.Bottleneck, 64, 16, cardinality=8, base_width=16),  # 8 groups of 4
        layer((64, 5, 5), (64, 5, 5), residual=True),
        {"conv3": ("bn2.weight", 1)},
        {"conv1.weight": [16, 64, 1, 1], "conv2.weight": [16, 4, 3, 3]},
    ),
    "regnet": Case(
        partial(regnet.Bottleneck, 32, 48, stride=2, group_size=8, se_ratio=0.25),
        layer((32, 8, 8), (48, 4, 4)),
        {"conv3.conv": ("conv2.bn.weight", 1), "se.fc1": ("conv2.bn.weight", 1)},
        {"conv2.conv.weight": [24, 8, 3, 3], "se.fc1.weight": [8, 24, 1, 1]},
    ),
    "resnest": Case(
        partial(resnest.ResNestBottleneck, 128, 32, radix=2, avd=True),
        layer((128, 5, 5), (128, 5, 5), residual=True),
        {"conv2.conv": ("bn1.weight", 1), "conv2.fc1": _IN_TWO, "conv3": _IN_TWO},
        {"conv2.conv.weight": [32, 8, 3, 3], "conv2.fc1.weight": [32, 16, 1, 1]},
    ),
    "resnest_4s2x": Case(
        partial(resnest.ResNestBottleneck, 256, 64, radix=4, cardinality=2, base_width=64),
        layer((256, 5, 5), (256, 5, 5), residual=True),
        {"conv2.conv": ("bn1.weight", 1), "conv2.fc1": _IN_FOUR, "conv3": _IN_FOUR},
        {"conv2.conv.weight": [256, 8, 3, 3], "conv3.weight": [256, 64, 1, 1]},
    ),
    "convnext": Case(
        partial(convnext.ConvNeXtBlock, 16, ls_init_value=0.5),
        layer((16, 6, 6), (16, 6, 6), residual=True),
        {"mlp.fc2": ("mlp.fc1.bias", 1)},
        {"mlp.fc1.weight": [32, 16], "mlp.fc2.weight": [16, 32], "gamma": [16]},
    ),
    "convnext_conv": Case(
        partial(convnext.ConvNeXtBlock, 16, conv_mlp=True),
        layer((16, 6, 6), (16, 6, 6), residual=True),
        {"mlp.fc2": ("mlp.fc1.bias", 1)},
        {"mlp.fc1.weight": [32, 16, 1, 1]},
    ),
    "vit": Case(
        partial(vision_transformer.Block, 32, 4, qkv_bias=True, init_values=0.5, qk_norm=True),
        layer((9, 32), (9, 32), residual=True),
        {"attn.proj": ("attn.qkv.bias", 3), "mlp.fc2": ("mlp.fc1.bias", 1)},
        {"attn.qkv.weight": [48, 32], "attn.proj.weight": [32, 16], "mlp.fc2.weight": [32, 64]},
    ),
    "gated_by_half": Case(
        partial(_Wired, lambda x: torch.mul(*x.chunk(2, 1)), 16),
        layer((8, 4, 4), (8, 4, 4)),
        {"second": ("first.bias", 2)},
        {"first.weight": [16, 8, 1, 1], "second.weight": [8, 8, 1, 1]},
    ),
    "concatenated": Case(
        partial(_Wired, lambda x: torch.cat([x, x.relu()], 1), 64),
        layer((8, 4, 4), (8, 4, 4)),
        {"second": ("first.bias", 1)},
        {"first.weight": [16, 8, 1, 1], "second.weight": [8, 32, 1, 1]},
    ),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def _alive(module: nn.Module, seed: int = 0) -> Any:
    """In evaluation mode, every tensor drawn at random, as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(drawn.abs() + 0.5 if "var" in name else drawn * tensor[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


def _images(at: Layer, size: int = 3) -> Tensor:
    return torch.randn(size, *at.input_shape, generator=torch.Generator().manual_seed(1))


def _half(case: Case, teacher: nn.Module) -> Any:
    return build_op(HALF, case.at, seed=0, teacher=teacher)


def _kept(teacher: nn.Module, smaller: nn.Module, name: str) -> Tensor:
    own, left = (dict(module.state_dict())[name] for module in (teacher, smaller))
    kept = (own[:, None] == left).any(1)
    assert kept.sum() == len(left)
    return kept


def _deaf(case: Case, teacher: nn.Module, smaller: nn.Module) -> nn.Module:
    """The teacher with zeros for every hidden channel that the smaller module lacks, where it is read."""
    deaf = copy.deepcopy(teacher)
    for path, (name, times) in case.reads.items():
        rows = _kept(teacher, smaller, name).reshape(times, -1)
        assert (rows == rows[0]).all()
        reader: Any = deaf.get_submodule(path)
        if isinstance(reader, nn.Conv2d):
            mask = rows[0].float().repeat(reader.in_channels // len(rows[0]))[:, None, None]
        else:
            mask = rows[0].float()
        reader.register_forward_pre_hook(lambda _, args, mask=mask: args[0] * mask)
    return deaf


def test_it_answers_as_the_layer_without_the_channels_that_went(case: Case) -> None:
    teacher = _alive(case.make())
    before = copy.deepcopy(teacher.state_dict())
    smaller = _half(case, teacher).eval()
    x = _images(case.at)
    with torch.no_grad():
        expected, whole = _deaf(case, teacher, smaller)(x), teacher(x)
        torch.testing.assert_close(smaller(x), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, whole, rtol=1e-2, atol=1e-2)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_half_the_width_is_a_multiple_of_eight_or_of_the_groups(case: Case) -> None:
    state = _half(case, case.make()).state_dict()
    assert {name: list(state[name].shape) for name in case.shapes} == case.shapes


@torch.no_grad()
def test_shapes_are_those_of_any_weights(case: Case) -> None:
    """A node without the teacher's weights builds what weights trained elsewhere are loaded into."""
    trained, arbitrary = _half(case, _alive(case.make())), _half(case, case.make())
    arbitrary.load_state_dict(trained.state_dict())
    x = _images(case.at)
    assert torch.equal(arbitrary.eval()(x), trained.eval()(x))
    silent = case.make()
    for parameter in silent.parameters():
        parameter.fill_(torch.nan)
    shapes = {name: value.shape for name, value in _half(case, silent).state_dict().items()}
    assert shapes == {name: value.shape for name, value in trained.state_dict().items()}


def test_it_learns(case: Case) -> None:
    module = _half(case, _alive(case.make()))
    assert all(part.training for part in module.modules())
    output = module(_images(case.at, 4))
    assert output.shape == (4, *case.at.output_shape)
    output.square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_costs_less(case: Case) -> None:
    teacher = _alive(case.make())
    target = Target(name="t", runtime="torch", input_shape=case.at.input_shape)
    own, smaller = (
        metered(module, target, ("params", "macs"), example=_images(case.at))
        for module in (teacher, _half(case, teacher))
    )
    assert smaller["params"] < 0.8 * own["params"]
    assert smaller["macs"] < 0.8 * own["macs"]


def test_programs_take_any_batch(case: Case) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module, x = _half(case, _alive(case.make())).eval(), _images(case.at)
    with torch.no_grad():
        expected = module(x)
        program = to_program(module, x[:2], dynamic_batch=True)
        torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(
        to_onnx(module, x[:2], dynamic_batch=True), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], expected.numpy(), atol=1e-3)


def test_a_layer_is_cut_where_one_pixel_is_left() -> None:
    for size in ((2, 2), (1, 1)):
        assert fits(HALF, layer((16, *size), (24, 1, 1)), CASES["mbconv"].make())


def test_the_channels_that_matter_stay() -> None:
    case = CASES["mbconv_se"]
    teacher = _alive(case.make())
    for reader in (teacher.conv_pwl, teacher.se.conv_reduce):
        reader.weight[:, ::2] *= 1e-3
    kept = _kept(teacher, _half(case, teacher), "bn2.weight")
    assert kept.nonzero().flatten().tolist() == list(range(1, 96, 2))


_NOTHING_TO_CUT: dict[str, nn.Module] = {
    "no hidden channels": nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()),
    "depthwise, separable": efficientnet.DepthwiseSeparableConv(8, 8, se_layer=_SE),
    "few channels": nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)),
    "no parameters": nn.Identity(),
    "mixed channels": _Wired(lambda x: x.softmax(1)),
    "an operator without a rule": _Wired(lambda x: x.cumsum(1)),
    "normalised in groups": nn.Sequential(nn.Conv2d(8, 32, 1), nn.GroupNorm(4, 32), nn.Conv2d(32, 8, 1)),
    "shuffled": nn.Sequential(nn.Conv2d(8, 32, 1), nn.ChannelShuffle(4), nn.Conv2d(32, 8, 1)),
    "part of it": _Wired(lambda x: x[:, :16], 16),
    "a number of its own": _Wired(lambda x: x.reshape(-1, 32, 4, 4)),
    "a choice by content": _Wired(lambda x: x if x.sum() > 0 else -x),
    "what all channels say": convnext.ConvNeXtBlock(8, use_grn=True),
}


@pytest.mark.parametrize("module", _NOTHING_TO_CUT.values(), ids=list(_NOTHING_TO_CUT))
def test_it_is_no_candidate_where_nothing_can_be_cut(module: nn.Module) -> None:
    at = layer((8, 4, 4), (8, 4, 4))
    assert module(_images(at)).shape == (3, *at.output_shape)
    assert not fits(HALF, at, module)
    with pytest.raises(ValueError, match=r"layer blocks\.0: pruned_w0\.5 does not fit"):
        build_op(HALF, at, seed=0, teacher=module)


def _error(candidate: nn.Module, teacher: nn.Module, at: Layer) -> float:
    x = torch.randn(64, *at.input_shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        y = teacher(x)
        return float((candidate(x) - y).square().sum() / y.square().sum())


def _trained(case: Case) -> Any:
    """With the statistics of what it reads, and inner channels that differ much."""
    teacher = _alive(case.make()).train()
    for norm in (part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 1.0
        norm.weight.data += norm.weight.sign()
    teacher(_images(case.at, 64))
    return teacher.eval()


def test_a_warm_start_is_nearer_to_the_layer_than_its_weights_alone(case: Case) -> None:
    teacher = _trained(case)
    before = copy.deepcopy(teacher.state_dict())
    candidate = _half(case, teacher)
    weights_alone = _error(copy.deepcopy(candidate), teacher, case.at)
    inputs = _images(case.at, 64)
    warm_start(candidate, case.at, teacher, inputs, teacher(inputs))
    assert candidate.training
    assert all(parameter.requires_grad for parameter in candidate.parameters())
    start = _error(candidate, teacher, case.at)
    assert start < 0.8 * weights_alone
    assert _error(candidate.eval(), teacher, case.at) < 0.8 * weights_alone
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for module in (*teacher.modules(), *candidate.modules()))


def test_a_warm_start_keeps_the_channels_that_vary() -> None:
    case = CASES["mbconv_se"]
    teacher = _trained(case)
    for tensor in (teacher.bn2.weight, teacher.bn2.bias):
        tensor[::2] *= 1e-3
    candidate = _half(case, teacher)
    inputs = _images(case.at, 64)
    warm_start(candidate, case.at, teacher, inputs, teacher(inputs))
    kept = (teacher.conv_dw.weight[:, None] == candidate.conv_dw.weight).flatten(2).all(2).any(1)
    assert kept.nonzero().flatten().tolist() == list(range(1, 96, 2))
    assert _error(candidate, teacher, case.at) < 0.01


def test_what_is_solved_makes_up_for_channels_that_repeat_others() -> None:
    case = CASES["convnext"]
    teacher = _trained(case)
    for tensor in (teacher.mlp.fc1.weight, teacher.mlp.fc1.bias):
        tensor[32:] = tensor[:32]
    candidate = _half(case, teacher)
    inputs = _images(case.at, 64)
    warm_start(candidate, case.at, teacher, inputs, teacher(inputs))
    assert _error(candidate, teacher, case.at) < 0.02
