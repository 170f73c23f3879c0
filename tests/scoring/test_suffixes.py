"""A network run from the middle on answers as the whole one does, or is refused."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor

from lana_ray.errors import UserError
from lana_ray.networks.layers import find_layers, observe
from lana_ray.scoring.suffixes import Suffix

from ..networks.test_layers import IMAGES, assert_unchanged, state_of
from ..small_networks import Net, net


@pytest.mark.parametrize("name", [None, "mobilenetv3_small_050", "resnet18"])
def test_suffixes_equal_the_whole_forward_pass(name: str | None) -> None:
    network, images = (timm.create_model(name), torch.randn(3, 3, 32, 32)) if name else (net(5), IMAGES)
    network.eval()
    layers = find_layers(network, images)
    before = state_of(network)
    seen = observe(network, [layer.name for layer in layers], images)
    with torch.no_grad():
        expected = network(images)
        for position, layer in enumerate(layers):
            suffix = Suffix(network, layers, position, images)
            assert torch.allclose(suffix(seen[layer.name][1]), expected, rtol=1e-4, atol=1e-5)
    assert_unchanged(network, before)


def test_suffixes_answer_for_what_a_candidate_says() -> None:
    network = net(5).eval()
    layers = find_layers(network, IMAGES)
    for position, layer in enumerate(layers):
        suffix = Suffix(network, layers, position, IMAGES)
        output = torch.rand(len(IMAGES), *layer.output_shape)
        student = copy.deepcopy(network)
        student.get_submodule(layer.name).register_forward_hook(lambda _, args, out, given=output: given)
        with torch.no_grad():
            assert torch.allclose(suffix(output), student(IMAGES), atol=1e-5)


def test_one_suffix_answers_for_other_batches_and_shares_the_weights() -> None:
    network = net(5).eval()
    layers = find_layers(network, IMAGES)
    suffix = Suffix(network, layers, 1, IMAGES)
    others = torch.randn(7, 3, 16, 16)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
        output = observe(network, ["blocks.1"], others)["blocks.1"][1]
        assert torch.allclose(suffix(output), network(others), atol=1e-5)
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in suffix.network.parameters()} <= own


class _LongShortcut(Net):
    """The second block's answer is added again behind the third."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        out: Tensor = self.head((self.blocks[2](x) + 3 * x).mean((2, 3)))
        return out


def test_a_shortcut_around_layers_is_refused() -> None:
    network = _LongShortcut(5).eval()
    layers = find_layers(network, IMAGES)
    Suffix(network, layers, 1, IMAGES)
    with pytest.raises(UserError, match=r"layer blocks\.2 .*teacher\.layers"):
        Suffix(network, layers, 2, IMAGES)
