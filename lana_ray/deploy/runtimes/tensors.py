"""Tensor types and batches, shared by the runtimes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy import to_onnx
from lana_ray.deploy.half import cast_onnx

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""A target's precision -> torch's type."""


def typed_onnx(module: nn.Module, example: Tensor, target: Target) -> bytes:
    """Exports ``module`` as an ONNX program in the target's precision, including its input and output."""
    traced = to_onnx(module, example, dynamic_batch=False)
    dtype = DTYPES[target.precision]
    return traced if dtype == torch.float32 else cast_onnx(traced, dtype)


def in_batches(call: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Outputs for any number of images; ``call`` takes exactly ``size``, so the last batch is padded."""
    missing = -len(images) % size
    padded = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
    return torch.cat([call(part) for part in torch.split(padded, size)])[: len(images)]
