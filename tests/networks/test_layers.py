"""Layers of real and of awkward networks are found, refused and replaced."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lana_ray.networks.layers import Layer, batch_statistics, find_layers, observe, replace

from ..errors import refuses
from ..small_networks import Block, net

IMAGES = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_unchanged(network: nn.Module, before: dict[str, Tensor]) -> None:
    after = network.state_dict()
    assert after.keys() == before.keys()
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert changed == []


class Chain(nn.Module):
    """Blocks between a stem and a head; subclasses define how they are called."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 5)

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(self.stem(images)).mean((2, 3)))
        return answer


@pytest.mark.parametrize(
    ("name", "options", "size", "names", "residual"),
    [
        (
            "tf_efficientnet_lite0",
            {},
            64,
            "blocks.{0.0 1.0 1.1 2.0 2.1 3.0 3.1 3.2 4.0 4.1 4.2 5.0 5.1 5.2 5.3 6.0}",
            "1.1 2.1 3.1 3.2 4.1 4.2 5.1 5.2 5.3",
        ),
        (
            "mobilenetv3_small_050",
            {},
            64,
            "blocks.{0.0 1.0 1.1 2.0 2.1 2.2 3.0 3.1 4.0 4.1 4.2 5.0}",
            "1.1 2.1 2.2 3.0 3.1 4.1 4.2",
        ),
        ("resnet18", {}, 64, "layer{1.0 1.1 2.0 2.1 3.0 3.1 4.0 4.1}", "1.0 1.1 2.1 3.1 4.1"),
        ("resnest14d", {}, 64, "layer{1.0 2.0 3.0 4.0}", ""),
        (
            "regnetx_002",
            {},
            64,
            "s{1.b1 2.b1 3.b1 3.b2 3.b3 3.b4 4.b1 4.b2 4.b3 4.b4 4.b5 4.b6 4.b7}",
            "3.b2 3.b3 3.b4 4.b2 4.b3 4.b4 4.b5 4.b6 4.b7",
        ),
        (
            "convnext_atto",
            {},
            64,
            "stages.{0.blocks.0 0.blocks.1 1.blocks.0 1.blocks.1 2.blocks.0 2.blocks.1 2.blocks.2 2.blocks.3 "
            "2.blocks.4 2.blocks.5 3.blocks.0 3.blocks.1}",
            "all",
        ),
        ("vit_tiny_patch16_224", {"img_size": 32}, 32, "blocks.{0 1 2 3 4 5 6 7 8 9 10 11}", "all"),
    ],
)
def test_layers_of_timms_families(
    name: str, options: dict[str, Any], size: int, names: str, residual: str
) -> None:
    network = timm.create_model(name, **options).eval()
    layers = find_layers(network, torch.randn(2, 3, size, size))
    prefix, places = names.rstrip("}").split("{")
    assert [layer.name for layer in layers] == [prefix + place for place in places.split()]
    expected = places if residual == "all" else residual
    assert [layer.name for layer in layers if layer.residual] == [prefix + p for p in expected.split()]
    for layer in layers:
        assert not layer.residual or layer.input_shape == layer.output_shape
        assert layer.is_image == (name != "vit_tiny_patch16_224")
    for before, after in itertools.pairwise(layers):
        if name != "convnext_atto":  # whose stages begin with a downsampling of their own
            assert before.output_shape == after.input_shape


def test_shapes_of_a_layer() -> None:
    first, second, third = find_layers(net(5), IMAGES)
    assert (first.name, first.residual, first.stride) == ("blocks.0", True, 1)
    assert second == Layer(name="blocks.1", input_shape=(8, 16, 16), output_shape=(16, 8, 8), residual=False)
    assert (second.in_channels, second.out_channels, second.stride) == (8, 16, 2)
    assert third.residual


def test_finding_layers_leaves_the_network_alone() -> None:
    network = net(5).train()
    network.get_submodule("blocks.1").eval()
    before, modes = state_of(network), [module.training for module in network.modules()]
    find_layers(network, IMAGES)
    assert_unchanged(network, before)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())


def test_patterns_choose_layers_in_the_order_they_run() -> None:
    network = net(5)
    assert [x.name for x in find_layers(network, IMAGES, ["blocks.2", "blocks.0"])] == [
        "blocks.0",
        "blocks.2",
    ]
    assert [x.name for x in find_layers(network, IMAGES, ["blocks.*"])] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]
    inner = find_layers(network, IMAGES, ["blocks.*.body", "stem"])
    assert [x.name for x in inner] == ["stem", "blocks.0.body", "blocks.1.body", "blocks.2.body"]
    assert not any(layer.residual for layer in inner)


def test_a_pattern_without_a_module_is_named() -> None:
    with refuses("unknown_name", "teacher.layers", "'layer*'", "stem, blocks, "):
        find_layers(net(5), IMAGES, ["blocks.*", "layer*"])


def test_an_unknown_structure_asks_for_patterns() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.LazyLinear(5))
    with refuses("unsupported_network", "Sequential", "teacher.layers"):
        find_layers(network, IMAGES)


def test_patterns_are_shown_of_modules_in_a_row_at_any_depth() -> None:
    def stage() -> nn.Module:
        blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1)) for _ in range(2)))
        return nn.Sequential(OrderedDict(down=nn.Identity(), blocks=blocks))

    stages = nn.Sequential(stage(), stage())
    network = nn.Sequential(OrderedDict(stem1=nn.Identity(), layers=stages, flat=nn.Flatten()))
    with refuses("unsupported_network", "teacher.layers") as error:
        find_layers(network, IMAGES)
    shown = str(error.value).split("its modules: ")[1].split(", ")
    assert shown == ["stem1", "layers", "layers.*", "layers.*.blocks.*", "layers.*.blocks.*.*", "flat"]
    names = [layer.name for layer in find_layers(network, IMAGES, [shown[3]])]
    assert names == [f"layers.{i}.blocks.{k}" for i in range(2) for k in range(2)]


class _Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class _Keyword(nn.Module):
    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return x * scale


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _Folded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)


class _CalledWithTwo(Chain):
    def body(self, x: Tensor) -> Tensor:
        return self.blocks[0](x, x)


class _CalledWithKeyword(Chain):
    def body(self, x: Tensor) -> Tensor:
        return self.blocks[0](x, scale=2.0)


class _TakesAPair(Chain):
    def body(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)[0]


class _Unfolds(Chain):
    def body(self, x: Tensor) -> Tensor:
        return self.blocks[0](x).reshape(x.shape)


class _Twice(Chain):
    def body(self, x: Tensor) -> Tensor:
        return self.blocks[0](self.blocks[0](x))


class _Never(Chain):
    def body(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (_CalledWithTwo(_Two()), "['Tensor', 'Tensor']"),
        (_CalledWithKeyword(_Keyword()), "['Tensor', 'scale']"),
        (_TakesAPair(_Pair()), "returns tuple"),
        (_Unfolds(_Folded()), "first dimension"),
        (_Twice(nn.Identity()), "more than once"),
        (_Never(nn.Identity()), "does not run"),
    ],
)
def test_a_misfit_is_named_with_its_reason(network: nn.Module, reason: str) -> None:
    with refuses("unsupported_network", "layer blocks.0 ", reason, "teacher.layers"):
        find_layers(network, IMAGES)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_layer_inside_another_is_refused() -> None:
    with refuses("unsupported_network", "layer blocks.0.body ", "layer blocks.0;", "teacher.layers"):
        find_layers(net(5), IMAGES, ["blocks.*", "blocks.*.body"])


class _ActsInPlace(Chain):
    """A network that overwrites the output of a block."""

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).mul_(2)
        return x


class _Preactivated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.conv(nn.functional.relu_(x))
        return answer


@pytest.mark.parametrize(
    "network", [_ActsInPlace(nn.Conv2d(8, 8, 1)), Chain(_Preactivated())], ids=["output", "input"]
)
def test_a_layer_changed_in_place_is_refused(network: nn.Module) -> None:
    """What ``observe`` keeps would not be the layer's input and output."""
    with refuses("unsupported_network", "layer blocks.0 ", "in place", "teacher.layers"):
        find_layers(network, IMAGES)


class _Gated(nn.Module):
    """Squeeze and excitation, without a sum with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.conv(x.mean((2, 3), keepdim=True)).sigmoid()
        return y


class _Added(nn.Module):
    """A sum with the input, followed by an activation."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.act = act
        nn.init.ones_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + self.norm(nn.functional.conv2d(x, self.weight, padding=1)))
        return y


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.PReLU)


@pytest.mark.parametrize(
    ("block", "residual"),
    [
        *((_Added(act()), True) for act in ACTIVATIONS),
        (_Gated(), False),
        (nn.Conv2d(8, 8, 3, padding=1), False),
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)), False),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), nn.ReLU()), False),
        (nn.AvgPool2d(3, 1, 1), False),
        (nn.Sequential(nn.BatchNorm2d(8), nn.Sigmoid()), False),
    ],
)
def test_a_residual_is_found_by_what_bypasses_the_weights(block: nn.Module, residual: bool) -> None:
    network = Chain(block).eval()
    before = state_of(network)
    (layer,) = find_layers(network, IMAGES, ["blocks.*"])
    assert layer.residual is residual
    assert_unchanged(network, before)


class _ListedTwice(Chain):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.stages = nn.ModuleList([self.blocks])


def test_a_module_with_two_names_is_one_layer() -> None:
    network = _ListedTwice(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    assert [layer.name for layer in find_layers(network, IMAGES)] == ["blocks.0", "blocks.1"]
    stages = find_layers(network, IMAGES, ["stages.*.*"])
    assert [layer.name for layer in stages] == ["stages.0.0", "stages.0.1"]
    both = find_layers(network, IMAGES, ["blocks.*", "stages.*.*"])
    assert len({network.get_submodule(layer.name) for layer in both}) == len(both) == 2


def test_observe_gives_every_layers_input_and_output() -> None:
    network = net(5).eval()
    seen = observe(network, ["blocks.2", "blocks.0"], IMAGES)
    assert seen.keys() == {"blocks.0", "blocks.2"}
    inputs, output = seen["blocks.2"]
    with torch.no_grad():
        assert torch.equal(network.get_submodule("blocks.2")(inputs), output)
        assert torch.equal(network.get_submodule("head")(output.mean((2, 3))), network(IMAGES))
    assert not output.requires_grad
    assert not any(module._forward_hooks for module in network.modules())


def test_replace_leaves_the_original() -> None:
    network = net(5).eval()
    before, new = state_of(network), nn.Identity()
    student = replace(network, {"blocks.0": new})
    assert student.get_submodule("blocks.0") is new
    assert isinstance(network.get_submodule("blocks.0"), Block)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert_unchanged(network, before)


def test_replacing_nothing_copies() -> None:
    network = net(5).eval()
    student = replace(network, {})
    assert student is not network
    with torch.no_grad():
        assert torch.equal(student(IMAGES), network(IMAGES))


@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_leave_the_network_as_it_was(training: bool) -> None:
    network = net(5).train(training)
    before = state_of(network)
    with batch_statistics(network), torch.no_grad():
        network(IMAGES)
    assert_unchanged(network, before)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [(norm.training, norm.momentum, norm.track_running_stats) for norm in norms] == [
        (training, 0.1, True) for _ in norms
    ]


def test_batch_statistics_survive_numbers_that_are_none() -> None:
    network = net(5).eval()
    before = state_of(network)
    with batch_statistics(network), torch.no_grad():
        network(torch.full_like(IMAGES, float("nan")))
    assert_unchanged(network, before)


def test_batch_statistics_normalise_the_batch_and_touch_nothing_else() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9)).eval()
    with batch_statistics(network):
        output = network(5 + 3 * IMAGES)
        assert not network[1].training
    assert torch.allclose(output.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(output.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-3)


def test_the_modes_come_back_after_an_error() -> None:
    network = net(5).eval()
    with pytest.raises(RuntimeError), batch_statistics(network):
        network(IMAGES[0, 0])
    assert not any(module.training for module in network.modules())
