"""Memory that the training of a candidate needs, measured by a training pass over two images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lana_ray.networks.layers import Layer

# The fewest images that a batch-norm can be trained on.
_IMAGES = 2
# Each parameter has itself, its gradient and Adam's two moments.
_KEPT = 4
# Largest tensors alive in addition to the saved ones: an output, its gradient, the next one's.
_PASSING = 3


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Memory that one candidate adds to the worker that trains it, in bytes."""

    kept: int
    """Bytes during its whole round: weights, gradients and the optimiser's state."""
    per_image: int
    """Bytes per image during its own step: tensors saved for the backward pass and temporary ones."""
    observed: int
    """Bytes per image for the layer's input and output in the teacher, which its candidates share."""


def demand(module: nn.Module, layer: Layer) -> Demand:
    """Measures a candidate's demand; changes its running statistics, so the module must not be used further.

    Args:
        module: in training mode, on the CPU.
    """
    own = {tensor.untyped_storage()._cdata for tensor in module.state_dict(keep_vars=True).values()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        # Keeps the storage alive, so that no other tensor gets its address.
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(note, lambda tensor: tensor):
        images = torch.zeros(_IMAGES, *layer.input_shape)
        own.add(images.untyped_storage()._cdata)
        output: Tensor = module(images)
    passing = _PASSING * max(output.nbytes, *saved.values(), 0)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    return Demand(
        kept=_KEPT * weights,
        per_image=(sum(saved.values()) + passing) // _IMAGES,
        observed=(images.nbytes + output.nbytes) // _IMAGES,
    )
