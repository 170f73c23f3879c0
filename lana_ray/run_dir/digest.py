"""Weights files: safetensors with a digest of their content, which is checked whenever they are read.

safetensors itself has no checksum, so a flipped bit would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


DIGEST_KEY = "lana_ray.digest"


def seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its digest in the metadata; tied weights are written under each name."""
    import safetensors.torch  # imports torch, which takes seconds

    content: dict[str, Tensor] = {}
    written: set[int] = set()
    for key, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        content[key] = plain.clone() if memory in written else plain
        written.add(memory)
    return safetensors.torch.save(content, {**metadata, DIGEST_KEY: _digest(content, metadata)})


def unseal(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a sealed file; raises ValueError if it is damaged or has no digest."""
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata: dict[str, str] = header["__metadata__"]
        recorded = metadata[DIGEST_KEY]
    except Exception as error:  # damaged bytes can raise anything
        raise ValueError(f"not a complete weights file: {type(error).__name__}: {error}") from None
    if recorded != _digest(tensors, {k: v for k, v in metadata.items() if k != DIGEST_KEY}):
        raise ValueError("its content does not match its digest")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
