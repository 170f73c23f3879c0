"""Which pixels of its input a strided module reads, found by trying: its true stride and how it pads."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def at_random(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode, with weights and statistics that let every channel count."""
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


_LEAST = 24  # pixels of an image on which a reach is looked for
_FAR = 30.0  # times the influence of far pixels, which all have where a gate sees the whole image


def find_offset(
    module: nn.Module, channels: int, size: Sequence[int], stride: int
) -> tuple[float, float] | None:
    """The middle of what output pixel (0, 0) of a strided module reads, in rows and columns of its input.

    Found from gradients at the first and the last output pixel, with random weights; on an image of about
    24 x 24 pixels where the module takes any size, with the same rest when divided by the stride. (0, 0)
    where the output depends on the whole image alike, as behind attention.

    Args:
        module: maps images [N, C, H, W] to images; left unchanged.
        stride: what the sizes of its images suggest: ⌈H / stride⌉ rows of ⌈W / stride⌉ pixels.

    Returns:
        None where it has another stride, as images of another size show.
    """
    trial = at_random(module)
    usual = [side + stride * (math.ceil((_LEAST - side) / stride) or 1) for side in size]
    for sides in (usual, size):
        try:
            influence, after = _influence(trial, channels, sides)
        except Exception:  # of the network's own code, which may take one size only
            continue
        if after != tuple(math.ceil(side / stride) for side in sides):
            return None
        found = [_middle(influence.sum(2 - axis), stride * (after[axis] - 1)) for axis in (0, 1)]
        return found[0] or 0.0, found[1] or 0.0
    return 0.0, 0.0


@torch.enable_grad()
def _influence(trial: nn.Module, channels: int, sides: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """What each pixel does to the first and to the last output pixel, shape [2, H, W]; the output's size."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *sides, generator=generator) - 0.5
    images = image.repeat(2, 1, 1, 1).requires_grad_()
    output: Tensor = trial(images)
    weighed = output * (torch.rand(output.shape, generator=generator) + 0.5)
    total = weighed[0, :, 0, 0].sum() + weighed[1, :, -1, -1].sum()
    (gradient,) = torch.autograd.grad(total, images)
    return gradient.square().sum(1), tuple(output.shape[2:])


def _middle(influence: Tensor, apart: int) -> float | None:
    """The middle of what the first output pixel reads along one axis; None where it reads all alike.

    The image may end within what it reads, so the middle lies between where this ends and where it begins,
    which the last output pixel tells.

    Args:
        influence: of the axis' n pixels on the first and the last output pixel, shape [2, n].
        apart: input pixels between the middles of the two.
    """
    first, last = influence
    end, from_behind = _end(first), _end(last.flip(0))
    if end is None or from_behind is None:
        return None
    return (end + len(last) - 1 - from_behind - apart) / 2


def _end(influence: Tensor) -> int | None:
    """The last pixel with an influence that far ones have not."""
    far = influence[-max(1, len(influence) // 4) :].max()
    near = influence > torch.maximum(_FAR * far, 1e-6 * influence.max())
    return int(near.nonzero().max()) if near.any() else None
