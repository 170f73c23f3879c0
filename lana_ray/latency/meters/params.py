"""How many numbers a network has learned."""

from __future__ import annotations

from torch import Tensor, nn

from lana_ray.config import Target

NAME = "params"
UNIT = "parameters"


def unavailable(target: Target) -> None:
    """Counted anywhere."""


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """The elements of the network's parameters, counted as papers and timm do.

    A parameter shared between layers counts once. A batch-norm's scale and shift count, though deployment
    folds them into the convolution before; its running statistics do not.
    """
    return float(sum(parameter.numel() for parameter in module.parameters()))
