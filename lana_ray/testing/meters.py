"""The suite that every meter must pass, on a small network."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from lana_ray.config import MeasureConfig, Target
from lana_ray.costs.meter import Meter
from lana_ray.deploy.inputs import example_input
from lana_ray.networks.factories import seeded

_QUICK = MeasureConfig(rel_error=0.5, time_limit_s=0.01)


def small_network() -> nn.Module:
    """Returns a network from images [n, 3, 16, 16] to five logits, the same at every call."""
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )


class MeterSuite:
    """Tests of a meter: set ``meter``, and ``target`` for another target than PyTorch on a CPU."""

    meter: ClassVar[Meter]
    target: ClassVar[Target] = Target(name="here", batch_size=2, input_shape=(3, 16, 16), measure=_QUICK)

    def test_its_name_ends_in_its_unit_or_is_what_it_counts(self) -> None:
        assert self.meter.name.isidentifier()
        assert self.meter.unit
        assert self.meter.axis

    def test_it_reads_or_says_why_not_and_leaves_the_network_alone(self) -> None:
        network = small_network().train()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        reason = self.meter.unavailable(self.target)
        if reason is None:
            value = self.meter.read(network, example_input(self.target), self.target)
            assert math.isfinite(value)
            assert value > 0
        else:
            assert reason.strip()
            assert "\n" not in reason
        assert all(part.training for part in network.modules())
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_what_is_counted_is_the_same_every_time(self) -> None:
        if self.meter.counted:
            images = example_input(self.target)
            assert self.meter.read(small_network(), images, self.target) == self.meter.read(
                small_network(), images, self.target
            )
