"""Example batches with which networks and layers are exported and measured."""

from __future__ import annotations

import torch
from torch import Tensor

from lana_ray.config import Target
from lana_ray.spaces.space import StudentSpace

DEFAULT_INPUT_SHAPE = (3, 224, 224)


def example_input(target: Target) -> Tensor:
    """Returns a random batch of the target's shape; every call returns the same."""
    shape = (target.batch_size, *(target.input_shape or DEFAULT_INPUT_SHAPE))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def layer_input(space: StudentSpace, layer: int, target: Target) -> Tensor:
    """Returns a random batch of a layer's inputs; every call returns the same."""
    shape = (target.batch_size, *space.layers[layer].input_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
