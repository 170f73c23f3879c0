"""Training state, kept in the run directory and read back without unpickling anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lana_ray.run_dir.digest import seal, unseal
from lana_ray.run_dir.storage import Storage

_TREE = "tree"


def pack(state: Any) -> bytes:
    """Packs nested dictionaries, lists, tuples, numbers, texts and tensors into one safetensors file.

    Tensors come back on the CPU. Dictionary keys may be texts or integers, as in the states of optimisers.

    Raises:
        TypeError: the state contains a value of another type.
    """
    tensors: dict[str, Tensor] = {}

    def tree(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": [[tree(key), tree(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [tree(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{type(value).__name__} cannot be part of a training state")

    return seal(tensors, {_TREE: json.dumps(tree(state))})


def unpack(data: bytes) -> Any:
    """The state that ``pack`` packed; raises ValueError if the bytes are damaged."""
    tensors, metadata = unseal(data)
    if _TREE not in metadata:
        raise ValueError("not a training state")
    written = json.loads(metadata[_TREE])

    def value(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        ((kind, content),) = tree.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {value(key): value(item) for key, item in content}
        items = [value(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    return value(written)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Loads and saves a state that ``pack`` can pack."""

    load: Callable[[], Any]
    """Returns None if no state was saved."""
    save: Callable[[Any], None]


def checkpoint_in(storage: Storage, file: str) -> Checkpoint:
    """A checkpoint in a file of the run directory; a damaged file is reported and counts as missing."""

    return Checkpoint(
        load=lambda: storage.intact(file, unpack, "its training starts again"),
        save=lambda state: storage.write_bytes(file, pack(state)),
    )
