"""Finds by trial which axis holds a layer's channels and which pixels it reads; turns layouts around."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.networks.preparation import runs

_LEAST = 24
"""Least height and width, pixels, of the images on which ``find_offset`` tries modules."""
_FAR = 30.0
"""Influence of a pixel that is read, relative to far pixels, which a gate over all the image may read too."""


class Layout(StrEnum):
    """The axis of an activation that holds its channels."""

    CHANNELS_FIRST = "channels first"
    """Images [C, H, W], sequences [C, L]."""
    CHANNELS_LAST = "channels last"
    """Images [H, W, C], tokens [T, D]."""
    UNKNOWN = "unknown"
    """The axis cannot be determined."""


def channels_first(x: Tensor) -> Tensor:
    """Returns a view of [N, ..., C] as [N, C, ...]."""
    return x.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


def channels_last(x: Tensor) -> Tensor:
    """Returns a view of [N, C, ...] as [N, ..., C]."""
    return x.permute(0, *range(2, x.dim()), 1)


class Rearranged(nn.Module):
    """Runs ``inner`` on activations of the other layout; ``outer`` is the layout of inputs and outputs."""

    def __init__(self, inner: nn.Module, outer: Layout) -> None:
        super().__init__()
        self.inner = inner
        self._last = outer is Layout.CHANNELS_LAST

    def to_inner(self, x: Tensor) -> Tensor:
        """Returns a view of an input or output in the layout of ``inner``."""
        return channels_first(x) if self._last else channels_last(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.to_inner(x))
        # Later modules may call view on the output, as Swin's windows do.
        return (channels_last(y) if self._last else channels_first(y)).contiguous()


def find_layouts(network: nn.Module, example: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Returns the layout of each layer by its name.

    The network runs on images of twice the size, on torch's ``meta`` device: the axis that does not grow
    holds the channels. If the network takes one size only, the parts of a layer that have weights decide:
    the axis whose size a part cannot change holds the channels. Norms and convolutions that read the layer's
    own input have precedence, since linear layers may mix tokens, as in an MLP-Mixer. If the parts do not
    decide, the same test is applied to the entire layer.

    Args:
        network: in evaluation mode; remains unchanged.
        inputs: input of each layer, shape [N, ...], by its name.
    """
    grown = _by_growth(network, example, [*inputs])
    return {
        name: grown.get(name) or _by_parts(network.get_submodule(name), x[:1]) or Layout.UNKNOWN
        for name, x in inputs.items()
    }


@torch.no_grad()
def _by_growth(network: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, Layout]:
    """Returns the layouts of layers from their shapes for the example and for images of twice its size.

    UNKNOWN if those of input and output differ. Layers whose layout the shapes do not determine are missing.
    """
    seen: list[dict[str, tuple[torch.Size, torch.Size]]] = []
    trial = on_meta(network)

    def note(name: str) -> Any:
        return lambda _, args, output: seen[-1].update({name: (args[0].shape, output.shape)})

    for name in names:
        trial.get_submodule(name).register_forward_hook(note(name))
    for factor in (1, 2):
        seen.append({})
        shape = [1, example.shape[1], *(factor * size for size in example.shape[2:])]
        with suppress(Exception):  # the network's head, for example, may take one size only
            trial(torch.empty(*shape, device="meta"))
    before, after = seen
    layouts = {}
    for name in before.keys() & after.keys():
        ends = {_fixed(*pair) for pair in zip(before[name], after[name], strict=True)}
        if ends != {None}:
            layouts[name] = (ends.pop() if len(ends) == 1 else None) or Layout.UNKNOWN
    return layouts


def _by_parts(module: nn.Module, inputs: Tensor) -> Layout | None:
    """Returns the layout that the parts of a layer agree on, else that of the entire layer, else None."""
    votes = list(_votes(module, inputs))
    for ballot in ({layout for layout, trusted in votes if trusted}, {layout for layout, _ in votes}):
        if len(ballot) == 1:
            return ballot.pop()
    return _at(_rigid_axis(module, inputs.shape), inputs.dim())


def _fixed(before: torch.Size, after: torch.Size) -> Layout | None:
    """Returns the layout whose channel axis is the only one that did not grow; None if there is none."""
    same = [axis for axis in range(1, len(before)) if before[axis] == after[axis]]
    return _at(same[0], len(before)) if len(same) == 1 else None


def _at(axis: int | None, dimensions: int) -> Layout | None:
    """Returns the layout that has its channels at an axis of [N, ...]."""
    if axis == 1:
        return Layout.CHANNELS_FIRST
    return Layout.CHANNELS_LAST if axis == dimensions - 1 else None


@torch.no_grad()
def _votes(module: nn.Module, inputs: Tensor) -> Iterator[tuple[Layout, bool]]:
    """Yields the layout of the layer's input, shape [1, ...], that each part with its own weights implies.

    The second value is whether the part is a norm or a convolution that reads the layer's own input.
    """
    calls: list[tuple[nn.Module, torch.Size, bool]] = []

    def note(part: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor):
            calls.append((part, args[0].shape, args[0] is inputs))

    with ExitStack() as stack:
        for part in module.modules():
            if [*part.parameters()] and not any([*child.parameters()] for child in part.children()):
                stack.enter_context(part.register_forward_pre_hook(note))
        module(inputs)
    first, last = inputs.shape[1], inputs.shape[-1]
    for part, shape, is_own in calls:
        axis = _rigid_axis(part, shape)
        if axis is None:
            continue
        linear = any(parameter.dim() == 2 for parameter in part.parameters())
        layout = _at(axis, len(shape))
        has_same_axes = is_own or (first == last and shape == inputs.shape)
        if has_same_axes and layout is not None:
            yield layout, is_own and not linear
        elif first != last and shape[axis] in (first, last):
            yield Layout.CHANNELS_FIRST if shape[axis] == first else Layout.CHANNELS_LAST, False


def _rigid_axis(module: nn.Module, shape: torch.Size) -> int | None:
    """Returns the only axis of its input whose size a module cannot double; None if there is none."""
    trial = on_meta(module)

    def takes(doubled: int) -> bool:
        sizes = [2 * size if axis == doubled else size for axis, size in enumerate(shape)]
        return runs(trial, torch.empty(*sizes, device="meta"))

    rigid = [axis for axis in range(1, len(shape)) if not takes(axis)]
    return rigid[0] if len(rigid) == 1 and runs(trial, torch.empty(*shape, device="meta")) else None


def on_meta(module: nn.Module) -> nn.Module:
    """Returns a copy of a module on torch's ``meta`` device, which has shapes but no values."""
    tensors: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
    }
    tensors |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, dict(tensors))


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
    from the last one, ``distance`` input pixels away. The ``influence`` on these two has the shape [2, n];
    None if it is the same for all pixels.
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
