"""Measures the latency of one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.measure import measure
from lana_ray.costs.meter import Meter
from lana_ray.deploy import runtimes


def unavailable(target: Target) -> str | None:
    """Returns why the target's networks cannot run on this machine; None if they can."""
    if fix := runtimes.RUNTIMES[target.runtime].missing:
        return f"the runtime {target.runtime} is not installed ({fix})"
    if target.device.startswith("cuda") and not torch.cuda.is_available():
        return f"torch finds no device {target.device}"
    return None


def unreachable(target: Target) -> str | None:
    """Returns why only the latency of the target's networks is known here: they run on another device."""
    remote = runtimes.RUNTIMES[target.runtime].is_remote
    return f"networks of the runtime {target.runtime} run on another device" if remote else None


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Returns the median latency of one session in ms, see ``measure``."""
    return measure(module, target, example=example).median_ms


METER = Meter(
    name="latency_ms", unit="ms per batch", axis="latency (ms per batch)", unavailable=unavailable, read=read
)
