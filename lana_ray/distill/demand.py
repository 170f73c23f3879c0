"""What training a candidate asks of the memory, found by training it on two images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lana_ray.networks.layers import Layer

_IMAGES = 2  # the fewest that a batch-norm can be trained on
_KEPT = 4  # of every parameter: itself, its gradient and Adam's two moments
_PASSING = 3  # largest tensors that are there beside what is saved: an answer, its gradient, the next one's


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one candidate adds to the memory of the worker that trains it, in bytes."""

    kept: int
    """For as long as its round lasts: weights, gradients and the optimiser's state."""
    per_image: int
    """While its own step lasts, for every image: what is saved for the backward pass and what passes."""
    observed: int
    """For every image: the layer's input and output in the teacher, which its candidates share."""


def demand(module: nn.Module, layer: Layer) -> Demand:
    """Measures a candidate; its running statistics change, so give it one that is not used afterwards.

    Args:
        module: in training mode, on the CPU.
    """
    own = {tensor.untyped_storage()._cdata for tensor in module.state_dict(keep_vars=True).values()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        held.append(tensor)  # else its storage's address would be given to the next one
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
