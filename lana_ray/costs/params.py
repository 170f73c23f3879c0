"""How many numbers a network has learned."""

from __future__ import annotations

from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.meter import Meter
from lana_ray.deploy import deployed


def unavailable(target: Target) -> None:
    """Counted anywhere."""


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """The elements of the network's parameters, counted as papers and timm do.

    A parameter shared between layers counts once. A batch-norm's scale and shift count, though deployment
    folds them into the convolution before; its running statistics do not. RepVGG's
    branches count as the one convolution that they are deployed as, as in its paper.
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
