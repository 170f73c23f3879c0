"""What runtimes do with tensors alike: types and batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy import to_onnx
from lana_ray.deploy.half import cast_onnx

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Torch's types by a target's precision."""


def typed_onnx(module: nn.Module, example: Tensor, target: Target) -> bytes:
    """``module`` as an ONNX program of the target's precision throughout, its input and output included."""
    traced = to_onnx(module, example, dynamic_batch=False)
    dtype = DTYPES[target.precision]
    return traced if dtype == torch.float32 else cast_onnx(traced, dtype)


def in_batches(call: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """What ``call``, which takes ``size`` images at once, answers for any number of them.

    The last batch is filled up with the first image.
    """
    missing = -len(images) % size
    padded = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
    return torch.cat([call(part) for part in torch.split(padded, size)])[: len(images)]
