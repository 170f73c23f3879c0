"""Mutable training state, kept in the run directory and read back without unpickling anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lana_ray.monitoring.progress import say
from lana_ray.run_dir.sealed import seal, unseal
from lana_ray.run_dir.storage import Storage

_TREE = "tree"


def pack(state: Any) -> bytes:
    """Nested dictionaries, lists, tuples, numbers, texts and tensors as one safetensors file.

    Tensors come back on the CPU; dictionaries may have texts and whole numbers as keys, as the states of
    optimisers do.

    Raises:
        TypeError: something else is in there.
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
        raise TypeError(f"{type(value).__name__} is no training state")

    return seal(tensors, {_TREE: json.dumps(tree(state))})


def unpack(data: bytes) -> Any:
    """What ``pack`` was given.

    Raises:
        ValueError: the bytes are damaged.
    """
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
    """Where a state is kept, of whatever ``pack`` takes."""

    load: Callable[[], Any]
    """None where none was saved."""
    save: Callable[[Any], None]


def checkpoint_in(storage: Storage, file: str) -> Checkpoint:
    """One in a file of the run directory; a damaged file is named, and counts as none."""

    def load() -> Any:
        if not storage.exists(file):
            return None
        try:
            return unpack(storage.read_bytes(file))
        except ValueError as error:
            say(f"{storage.url(file)}: {error}; what it belongs to starts again")
            return None

    return Checkpoint(load=load, save=lambda state: storage.write_bytes(file, pack(state)))
