"""Example of your own search space: plain convolutional networks with a width for each stage.

``lana_ray.latency.LatencyPredictor`` learns the networks' costs from the space's encodings:

    predictor = LatencyPredictor().fit([space.encode(a) for a in measured], latencies_ms)

``pytest jobs/examples/own_space.py`` runs the tests that all spaces pass.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lana_ray.ids import Architecture
from lana_ray.spaces.space import Space
from lana_ray.testing import SpaceSuite

WIDTHS = (8, 16, 24, 32)


class PlainSpace(Space):
    """Four stages that halve the image; an architecture is the index of each stage's width in ``WIDTHS``."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return (len(WIDTHS),) * 4

    def random(self, rng: np.random.Generator) -> Architecture:
        return tuple(int(choice) for choice in rng.integers(len(WIDTHS), size=4))

    def encode(self, architecture: Architecture) -> NDArray[np.float32]:
        return np.eye(len(WIDTHS), dtype=np.float32)[list(architecture)].ravel()

    def decode(self, encoding: NDArray[np.floating]) -> Architecture:
        return tuple(int(choice) for choice in np.asarray(encoding).reshape(4, -1).argmax(1))

    def build(self, architecture: Architecture) -> nn.Module:
        channels = (3, *(WIDTHS[choice] for choice in architecture))
        stages = [
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU())
            for before, after in pairwise(channels)
        ]
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


class TestPlainSpace(SpaceSuite):
    def space(self) -> PlainSpace:
        return PlainSpace()
