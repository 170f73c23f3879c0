"""Counts the parameters of a network."""

from __future__ import annotations

from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.meter import Meter
from lana_ray.deploy import deployed


def unavailable(target: Target) -> None:
    """Returns None: they can be counted on any machine."""


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Returns the number of elements of the network's parameters, counted as in papers and in timm.

    A parameter that layers share counts once. A batch-norm's scale and shift count, though deployment folds
    them into the convolution before; its running statistics do not. RepVGG's branches count as the one
    convolution that they become in deployment, as in its paper.
    """
    return float(sum(parameter.numel() for parameter in deployed(module).parameters()))


METER = Meter(
    name="params",
    unit="parameters",
    axis="parameters",
    counted=True,
    unavailable=unavailable,
    read=read,
)
