"""What is said of the candidates that a pool offers."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from lana_ray.networks.layers import find_layers
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.offers import offers

from ..small_networks import Net, net

IMAGES = torch.randn(2, 3, 16, 16)


def _offers(network: nn.Module, pool: str | list[str], images: Tensor = IMAGES) -> list[str]:
    network = network.eval()
    patterns = ["blocks.*"] if isinstance(network, Net) else None
    return offers(LayerwiseSpace(network, find_layers(network, images, patterns), pool))


def test_layers_of_a_kind_share_a_line() -> None:
    pool = ["identity", "mbconv_e1_k3", "mbconv_e3_k3", "conv_pair_w0.5_k3"]
    assert _offers(net(5), pool) == [
        "2 layers from blocks.0 to blocks.2, images with channels first, stride 1, residual: "
        "5 candidates: teacher, identity, 2 mbconv, conv_pair",
        "blocks.1, images with channels first, stride 2, not residual: 4 candidates: teacher, 2 mbconv, "
        "conv_pair",
    ]


def test_a_vit_has_choices_in_every_preset_by_default() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    images = torch.randn(2, 3, 32, 32)
    for preset, count in (("tiny", 8), ("small", 23)):
        (line,) = _offers(network, preset, images)
        assert f"2 layers from blocks.0 to blocks.1, tokens, residual: {count} candidates" in line
        assert "pruned" in line
        assert "transformer" in line


def test_layers_with_nothing_to_choose_are_named() -> None:
    network = Net(5)
    network.blocks[1] = nn.Sequential(nn.Conv2d(8, 16, 3, 2), nn.ReLU())  # 16 to 7 pixels
    first, second, _, warning = _offers(network, "tiny")
    assert "candidates" in first
    assert second.startswith("blocks.1, ")
    assert "1 candidate: teacher" in second
    assert warning.startswith("warning: ")
    assert "blocks.1: " in warning
    assert "not a whole stride" in warning
    assert not any("warning" in line for line in _offers(net(5), ["mbconv_e1_k3"]))
    *_, nothing = _offers(net(5), ["identity"])
    assert nothing.startswith("warning: ")
    assert "the pool has no other operation" in nothing
