"""Profiles of networks: what their layers take, as the runtimes themselves say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lana_ray.config import Target
from lana_ray.costs.profile import profile
from lana_ray.deploy.runtimes import RUNTIMES

from ..errors import refuses

LAYERS = ["body.0", "body.1", "body.1.heavy"]
PROFILED = [name for name, runtime in RUNTIMES.items() if runtime.profile is not None]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.light = nn.Conv2d(width, width, 1)
        self.heavy = nn.Sequential(nn.Conv2d(width, width, 7, padding=3), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.light(x) + self.heavy(x)


def network() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3, padding=1)
            self.body = nn.Sequential(nn.Conv2d(32, 32, 1), Block(32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(self.stem(x)).mean((2, 3))

    return Net().eval()


@pytest.mark.parametrize("runtime", PROFILED)
def test_a_heavy_layer_takes_most_of_the_time(runtime: str, own_process: None) -> None:
    if RUNTIMES[runtime].missing:
        pytest.skip(f"{runtime} is not installed")
    took = profile(network(), Target(name="here", runtime=runtime, input_shape=(3, 24, 24)), LAYERS)
    assert list(took) == [*LAYERS, ""]
    assert min(took.values()) > 0
    assert took["body.1.heavy"] > sum(took.values()) / 2  # 49 times what a layer of one pixel multiplies


def test_a_runtime_without_a_profile_says_so() -> None:
    with refuses("refused", "torch.compile", "no profile"):
        profile(network(), Target(name="here", runtime="torch-compile", input_shape=(3, 24, 24)), LAYERS)


def test_operators_of_no_known_layer_are_no_profile(own_process: None) -> None:
    with refuses("refused", "PyTorch", "which layers"):
        profile(network(), Target(name="here", runtime="torch", input_shape=(3, 24, 24)), ["elsewhere"])
