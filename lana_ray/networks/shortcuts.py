"""Checks that the modules after a layer depend on earlier ones only through the layer's output."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lana_ray.errors import UserError
from lana_ray.networks.layers import Layer, evaluating

_IMAGES = -1
"""Position of the network's images, as if they were the output of a layer before the first one."""


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks through every operator which layers' outputs a tensor was computed from.

    A tensor is identified by its memory, so that its views and writes into it are tracked too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of: defaultdict[StorageWeakRef, set[int]] = defaultdict(set)

    def of(self, values: Any) -> set[int]:
        """Returns the positions of the layers that any tensor in ``values`` depends on."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        return set().union(*(self._of.get(_memory(tensor), set()) for tensor in tensors))

    def set(self, value: Tensor, layer: int) -> None:
        """Records that a tensor is the output of a layer."""
        self._of[_memory(value)] = {layer}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if origins := self.of((args, kwargs)):
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self._of[_memory(value)] |= origins
        return result


def _memory(value: Tensor) -> StorageWeakRef:
    """Returns a key of a tensor's memory that is not reused while it exists, even if the memory is freed."""
    return StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]


@torch.no_grad()
def check_shortcuts(network: nn.Module, layers: Sequence[Layer], images: Tensor) -> None:
    """Checks with one forward pass that every layer depends only on the output of the layer before it.

    This must hold because scoring a candidate recomputes only the modules after its layer, from its output.
    The layers are in the order they run; the images have the shape [N, C, H, W].

    Raises:
        UserError: a shortcut bypasses a layer; the message names the layer and the shortcut's source.
    """
    origins = _Origins()

    def check(values: Any, before: int) -> None:
        """Raises unless ``values`` come from layer ``before`` alone."""
        earlier = origins.of(values) - {before}
        if earlier:
            first = min(earlier)
            source = "the images" if first == _IMAGES else f"the output of {layers[first].name}"
            raise UserError(
                "unsupported_network",
                f"layer {layers[first + 1].name} does not fit: later modules also read {source}; set "
                "teacher.layers to modules that no shortcut bypasses, e.g. the block that contains both",
            )

    def mark(position: int) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            check((args, output), position - 1)
            copied = output.clone()  # the layer may return its input itself
            origins.set(copied, position)
            return copied

        return hook

    with contextlib.ExitStack() as stack:
        for position, layer in enumerate(layers):
            stack.enter_context(network.get_submodule(layer.name).register_forward_hook(mark(position)))
        stack.enter_context(evaluating(network))
        stack.enter_context(origins)
        tracked = images.clone()
        origins.set(tracked, _IMAGES)
        check(network(tracked), len(layers) - 1)
