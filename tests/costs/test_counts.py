"""``params`` and ``macs``: against formulas, and against published figures."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.config import Target
from lana_ray.costs import macs, params
from lana_ray.ops.repvgg import RepConv

from ..small_networks import net

TARGET = Target(name="here")


def _image(channels: int, size: int, batch: int = 1) -> Tensor:
    return torch.zeros(batch, channels, size, size)


@pytest.mark.parametrize(
    ("module", "example", "expected"),
    [
        (nn.Conv2d(8, 12, 3, padding=1), _image(8, 10), 8 * 12 * 9 * 100),
        (nn.Conv2d(8, 12, 3, stride=2, padding=1), _image(8, 10), 8 * 12 * 9 * 25),
        (nn.Conv2d(8, 12, 5, padding=2, groups=4), _image(8, 10), 2 * 12 * 25 * 100),
        (nn.ConvTranspose2d(8, 12, 2, stride=2), _image(8, 5), 8 * 12 * 4 * 25),
        (nn.Linear(8, 5), torch.zeros(1, 8), 40),
        (nn.Linear(8, 5), torch.zeros(1, 7, 8), 7 * 40),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), _image(4, 6), 16 * 36),
        (nn.Sequential(nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.GELU()), _image(4, 6), 0),
    ],
    ids=["plain", "strided", "grouped", "transposed", "linear", "tokens", "folded", "nothing"],
)
def test_multiplications_are_those_of_the_formula(module: nn.Module, example: Tensor, expected: int) -> None:
    assert macs.read(module, example, TARGET) == expected


class _Attention(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        heads = tokens.reshape(*tokens.shape[:2], 4, -1).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads)


def test_attention_is_two_products_of_tokens_by_tokens() -> None:
    assert macs.read(_Attention(), torch.zeros(1, 9, 32), TARGET) == 2 * 9 * 9 * 32


def test_attention_that_eager_mode_fuses_counts_as_well() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True)
    projections, attention, feed_forward = 4 * 9 * 32 * 32, 2 * 9 * 9 * 32, 2 * 9 * 32 * 64
    assert macs.read(layer, torch.zeros(1, 9, 32), TARGET) == projections + attention + feed_forward


def test_the_count_is_of_one_input_whatever_the_batch() -> None:
    assert macs.read(net(5), _image(3, 16, batch=4), TARGET) == macs.read(net(5), _image(3, 16), TARGET)


def test_a_shared_parameter_counts_once() -> None:
    layer = nn.Linear(8, 8)
    assert params.read(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 8), TARGET) == 72
    assert params.read(nn.BatchNorm2d(4), _image(4, 2), TARGET) == 8


def test_branches_that_are_deployed_as_one_convolution_count_as_that() -> None:
    stage = RepConv(4, 4, 3)
    assert params.read(stage, _image(4, 5), TARGET) == 4 * 4 * 9 + 4
    assert macs.read(stage, _image(4, 5), TARGET) == 4 * 4 * 9 * 25


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [("resnet18", 11_689_512, 1.814), ("vit_base_patch32_224", 88_224_232, 4.409)],
)
def test_torchvisions_figures_come_out(name: str, parameters: int, gmacs: float) -> None:
    """``num_params`` and ``_ops`` in the meta data of torchvision's weights, the latter to a million."""
    with torch.device("meta"):
        network, example = timm.create_model(name), _image(3, 224)
    assert params.read(network, example, TARGET) == parameters
    assert macs.read(network, example, TARGET) / 1e9 == pytest.approx(gmacs, abs=6e-4)


def test_efficientnet_lite0_is_what_its_authors_say_but_for_what_they_count_besides() -> None:
    """TensorFlow's README of it: 4.7 M parameters and 407 M multiply-adds."""
    with torch.device("meta"):
        network, example = timm.create_model("tf_efficientnet_lite0"), _image(3, 224)
    assert params.read(network, example, TARGET) / 1e6 == pytest.approx(4.7, abs=0.05)
    assert macs.read(network, example, TARGET) / 1e6 == pytest.approx(407, rel=0.06)
