"""Whether what follows a layer reads anything computed before it, other than through the layer."""

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
"""Where the network's images come from, as if a layer before the first had made them."""


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows through every operator which layers' answers a tensor was computed from.

    A tensor is known by its memory, so that views of it and what is written into it count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of: defaultdict[StorageWeakRef, set[int]] = defaultdict(set)

    def of(self, values: Any) -> set[int]:
        """The layers that any of the tensors in ``values`` depends on."""
        origins: set[int] = set()
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                origins |= self._of.get(_memory(value), set())
        return origins

    def set(self, value: Tensor, layer: int) -> None:
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
    """A key that is not taken again as long as it is held, though the memory may be freed."""
    return StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]


@torch.no_grad()
def check_shortcuts(network: nn.Module, layers: Sequence[Layer], images: Tensor) -> None:
    """One forward pass that checks every layer: each may read the answer of the one before it alone.

    Scoring a candidate recomputes only what follows its layer, from the layer's output.

    Args:
        layers: in the order they run.
        images: shape [N, C, H, W].

    Raises:
        UserError: naming the first layer that something goes around, and where that something comes from.
    """
    origins = _Origins()

    def check(values: Any, before: int) -> None:
        """Raises unless ``values`` come from layer ``before`` alone."""
        earlier = origins.of(values) - {before}
        if earlier:
            first = min(earlier)
            source = "the images" if first == _IMAGES else f"the output of {layers[first].name}"
            raise UserError(
                f"layer {layers[first + 1].name} does not fit: what follows it also reads {source}; "
                "give teacher.layers that nothing goes around, the block that contains both for instance"
            )

    def mark(position: int) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            check((args, output), position - 1)
            own = output.clone()  # the layer may answer with its input itself
            origins.set(own, position)
            return own

        return hook

    with contextlib.ExitStack() as stack:
        for position, layer in enumerate(layers):
            module = network.get_submodule(layer.name)
            stack.callback(module.register_forward_hook(mark(position)).remove)
        stack.enter_context(evaluating(network))
        stack.enter_context(origins)
        given = images.clone()
        origins.set(given, _IMAGES)
        check(network(given), len(layers) - 1)
