"""Finds by trial which input pixels a strided module reads, that is, its true stride and its padding."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def at_random(module: nn.Module) -> nn.Module:
    """Returns a copy on the CPU, in evaluation mode, with random weights and statistics for every channel."""
    trial = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in trial.state_dict().values():
        if tensor.is_floating_point():
            value = 0.5 + torch.rand(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                value *= signs * tensor[0].numel() ** -0.5
            tensor.copy_(value)
    return trial


_LEAST = 24
"""Least height and width, pixels, of the images on which modules are tried."""
_FAR = 30.0
"""Influence of a pixel that is read, relative to far pixels, which a gate over all the image may read too."""


def find_offset(
    module: nn.Module, channels: int, size: Sequence[int], stride: int
) -> tuple[float, float] | None:
    """Returns the centre of the input region that output pixel (0, 0) of a module reads, as (row, column).

    It is computed from gradients of the first and the last output pixel, with random weights, on an image of
    about 24 x 24 pixels whose size has the same remainder modulo the stride, or on ``size`` if the module
    takes no other. It is (0, 0) if the output depends equally on the entire image, as after attention. None
    if images of another size show that the module has another stride.

    Args:
        module: maps images [N, C, H, W] to images; remains unchanged.
        stride: the apparent stride, by which outputs have ⌈H / stride⌉ rows of ⌈W / stride⌉ pixels.
    """
    trial = at_random(module)
    usual = [side + stride * (math.ceil((_LEAST - side) / stride) or 1) for side in size]
    for sides in (usual, size):
        try:
            influence, after = _influence(trial, channels, sides)
        except Exception:  # the network may take one size only
            continue
        if after != tuple(math.ceil(side / stride) for side in sides):
            return None
        row, column = (_centre(influence.sum(2 - axis), stride * (after[axis] - 1)) for axis in (0, 1))
        return row or 0.0, column or 0.0
    return 0.0, 0.0


@torch.enable_grad()
def _influence(trial: nn.Module, channels: int, sides: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Returns each pixel's influence on the first and last output pixel, [2, H, W], and the output size."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *sides, generator=generator) - 0.5
    images = image.repeat(2, 1, 1, 1).requires_grad_()
    output: Tensor = trial(images)
    weighed = output * (torch.rand(output.shape, generator=generator) + 0.5)
    total = weighed[0, :, 0, 0].sum() + weighed[1, :, -1, -1].sum()
    (gradient,) = torch.autograd.grad(total, images)
    return gradient.square().sum(1), tuple(output.shape[2:])


def _centre(influence: Tensor, distance: int) -> float | None:
    """Returns the centre of the region that the first output pixel reads along one axis.

    That region may extend beyond the image, so its end is taken from the first output pixel and its beginning
    from the last one. None if all pixels have the same influence.

    Args:
        influence: influence of the axis' n pixels on the first and the last output pixel, shape [2, n].
        distance: input pixels between the centres of the two.
    """
    first, last = influence
    end, end_of_flipped = _end(first), _end(last.flip(0))
    if end is None or end_of_flipped is None:
        return None
    return (end + len(last) - 1 - end_of_flipped - distance) / 2


def _end(influence: Tensor) -> int | None:
    """Returns the last pixel whose influence clearly exceeds that of far pixels; None if there is none."""
    far = influence[-max(1, len(influence) // 4) :].max()
    near = influence > torch.maximum(_FAR * far, 1e-6 * influence.max())
    return int(near.nonzero().max()) if near.any() else None
