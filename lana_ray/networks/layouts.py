"""Finds by trial which axis of an activation holds the channels, and runs modules in the other layout."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


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


Shapes = tuple[torch.Size, torch.Size]
"""Shapes of a layer's input and output, with the batch."""


def find_layouts(network: nn.Module, example: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Returns the layout of each layer by its name.

    The network runs on images of twice the size, on torch's ``meta`` device: the axis that does not grow
    holds the channels. If the network takes one size only, the parts of a layer that have weights decide:
    the axis whose size a part cannot change holds the channels. Norms and convolutions that read the layer's
    own input have precedence, since linear layers may mix tokens, as in an MLP-Mixer. If the parts do not
    decide, the same test is applied to the entire layer.

    Args:
        network: a network in evaluation mode; remains unchanged.
        example: an input batch of the network.
        inputs: input of each layer, shape [N, ...], by its name.
    """
    grown = _grown(network, example, [*inputs])
    return {
        name: (_by_growth(*grown[name]) if name in grown else None)
        or _by_parts(network.get_submodule(name), x[:1])
        or Layout.UNKNOWN
        for name, x in inputs.items()
    }


def _by_growth(before: Shapes, after: Shapes) -> Layout | None:
    """Returns the layout of a layer's input and output from their shapes for two image sizes.

    UNKNOWN if the two differ, None if the shapes do not determine it.
    """
    layouts = {_fixed(*pair) for pair in zip(before, after, strict=True)}
    if layouts == {None}:
        return None
    return layouts.pop() if len(layouts) == 1 else Layout.UNKNOWN


def _by_parts(module: nn.Module, inputs: Tensor) -> Layout | None:
    """Returns the layout that the parts of a layer agree on, else that of the entire layer, else None."""
    votes = list(_votes(module, inputs))
    for ballot in ([vote for vote in votes if vote.trusted], votes):
        layouts = {vote.layout for vote in ballot}
        if len(layouts) == 1:
            return layouts.pop()
    return _at(_rigid_axis(module, inputs.shape), inputs.dim())


class _Vote(NamedTuple):
    layout: Layout
    trusted: bool
    """Whether the part is a norm or a convolution that reads the layer's own input."""


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
def _votes(module: nn.Module, inputs: Tensor) -> Iterator[_Vote]:
    """Yields the layout of the layer's input, shape [1, ...], that each part with its own weights implies."""
    calls: list[tuple[nn.Module, torch.Size, bool]] = []

    def note(part: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor):
            calls.append((part, args[0].shape, args[0] is inputs))

    with ExitStack() as stack:
        for part in module.modules():
            if [*part.parameters()] and not any([*child.parameters()] for child in part.children()):
                stack.callback(part.register_forward_pre_hook(note).remove)
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
            yield _Vote(layout, trusted=is_own and not linear)
        elif first != last and shape[axis] in (first, last):
            by_size = Layout.CHANNELS_FIRST if shape[axis] == first else Layout.CHANNELS_LAST
            yield _Vote(by_size, trusted=False)


def _rigid_axis(module: nn.Module, shape: torch.Size) -> int | None:
    """Returns the only axis of its input whose size a module cannot double; None if there is none."""
    trial = on_meta(module)
    if not _runs(trial, shape):
        return None
    doubled = {
        axis: [2 * size if at == axis else size for at, size in enumerate(shape)]
        for axis in range(1, len(shape))
    }
    rigid = [axis for axis, larger in doubled.items() if not _runs(trial, larger)]
    return rigid[0] if len(rigid) == 1 else None


def _runs(trial: nn.Module, shape: Sequence[int]) -> bool:
    try:
        trial(torch.empty(*shape, device="meta"))
    except Exception:  # the network's code may raise anything
        return False
    return True


@torch.no_grad()
def _grown(network: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, tuple[Shapes, Shapes]]:
    """Returns the shapes of layers for the example and for images of twice its size, if they run on both."""
    seen: list[dict[str, Shapes]] = []
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
    return {name: (before[name], after[name]) for name in before.keys() & after.keys()}


def on_meta(module: nn.Module) -> nn.Module:
    """Returns a copy of a module on torch's ``meta`` device, which has shapes but no values."""
    tensors: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
    }
    tensors |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, dict(tensors))
