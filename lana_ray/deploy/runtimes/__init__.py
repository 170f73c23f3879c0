"""Runtimes: how a network runs on a target, by the name that ``targets.runtime`` has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes import onnxruntime, openvino, tensorrt, torch_compile, torch_eager
from lana_ray.deploy.runtimes.runtime import Runtime, Session
from lana_ray.errors import UserError, refusals
from lana_ray.registries import Registry

__all__ = ["RUNTIMES", "Runtime", "Session", "check", "load", "prepare", "program"]

_MODULES = (torch_eager, torch_compile, onnxruntime, openvino, tensorrt)
RUNTIMES = Registry("runtime", (module.RUNTIME for module in _MODULES))


def check(target: Target) -> None:
    """Refuses a target whose runtime knows no such device or precision, on whatever machine.

    Raises:
        UserError: naming the target and what to set instead.
    """
    known, kind = RUNTIMES[target.runtime].precisions, target.device.partition(":")[0]
    if kind not in known:
        raise UserError(
            f"target {target.name!r}: runtime {target.runtime} does not run on {kind}; "
            f"set its device to {' or '.join(known)}, or choose another runtime"
        )
    if target.precision not in known[kind]:
        raise UserError(
            f"target {target.name!r}: runtime {target.runtime} does not compute in {target.precision} on "
            f"{kind}; set its precision to {' or '.join(known[kind])}, or choose another runtime"
        )


def program(module: nn.Module, example: Tensor, target: Target) -> nn.Module | bytes:
    """``module`` in evaluation mode as the target's runtime deploys it; the module is left unchanged.

    The same bytes or graph whether they are measured or registered: the runtime need not be installed.

    Args:
        example: float32, the shape of the batches that are deployed for.

    Raises:
        Unsupported: when the network cannot be expressed.
        UserError: as ``check``.
    """
    check(target)
    deployed: nn.Module | bytes = RUNTIMES[target.runtime].program(module, example, target)
    return deployed


def prepare(module: nn.Module, example: Tensor, target: Target) -> Session:
    """Loads ``module`` into the target's runtime, in evaluation mode, with ``example`` bound.

    Raises:
        UserError: as ``program`` and ``load``.
    """
    return load(program(module, example, target), example, target)


def load(program: nn.Module | bytes, example: Tensor, target: Target) -> Session:
    """Loads a program as it is deployed into the target's runtime, with ``example`` bound, and runs it once.

    Args:
        program: what ``program`` made, or an exported PyTorch program as it loads.
        example: float32.

    Raises:
        Unsupported: when the runtime refuses the network. Faults of the machine, such as a lack of memory,
            are raised as they are.
        UserError: as ``check``, and when this machine lacks the runtime or the device.
    """
    check(target)
    if mend := RUNTIMES[target.runtime].missing:
        raise UserError(f"target {target.name!r}: runtime {target.runtime} is not installed; {mend}")
    if target.device != "cpu" and (torch.device(target.device).index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"target {target.name!r}: device {target.device} is not available on this machine; "
            "measure it on a node that has it"
        )
    runtime = RUNTIMES[target.runtime]
    with refusals(f"target {target.name!r}: {runtime.title}"):
        session = runtime.load(program, example, target)
        session.run()  # some refuse what they have loaded
    return session
