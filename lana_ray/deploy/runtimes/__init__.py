"""Runtimes by their names in ``targets.runtime``: how networks run on a target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes import command, onnxruntime, openvino, tensorrt, torch_compile, torch_eager
from lana_ray.deploy.runtimes.runtime import Runtime, Session
from lana_ray.errors import UserError, refusals
from lana_ray.redact import without_passwords
from lana_ray.registries import Registry

__all__ = ["RUNTIMES", "Runtime", "Session", "check", "load", "prepare", "program", "software"]

_MODULES = (torch_eager, torch_compile, onnxruntime, openvino, tensorrt, command)
RUNTIMES = Registry("runtime", (module.RUNTIME for module in _MODULES))


def check(target: Target) -> None:
    """Raises UserError if the target's runtime does not support its device or precision; runs anywhere."""
    supported, kind = RUNTIMES[target.runtime].precisions, target.device.partition(":")[0]
    if kind not in supported:
        raise UserError(
            "invalid_setting",
            f"target {target.name!r}: runtime {target.runtime} does not run on {kind}; "
            f"set its device to {' or '.join(supported)}, or choose another runtime",
        )
    if target.precision not in supported[kind]:
        raise UserError(
            "invalid_setting",
            f"target {target.name!r}: runtime {target.runtime} does not compute in {target.precision} on "
            f"{kind}; set its precision to {' or '.join(supported[kind])}, or choose another runtime",
        )


def software(target: Target) -> str:
    """Returns the target's runtime, with its version on this node or with its command line."""
    if target.command is not None:
        return f"{target.runtime} {without_passwords(target.command.run)}"
    return f"{target.runtime} {RUNTIMES[target.runtime].version}"


def program(module: nn.Module, example: Tensor, target: Target) -> nn.Module | bytes:
    """Exports ``module`` in evaluation mode for the target's runtime; the module itself is left unchanged.

    The bytes or the graph are the same for measuring and registering, and the runtime need not be installed.

    Args:
        example: float32, shape of the deployed batches.

    Raises:
        Unsupported: the network cannot be exported.
        UserError: as ``check``.
    """
    check(target)
    deployed: nn.Module | bytes = RUNTIMES[target.runtime].program(module, example, target)
    return deployed


def prepare(module: nn.Module, example: Tensor, target: Target) -> Session:
    """Loads ``module`` into the target's runtime with ``example`` bound; calls ``program`` and ``load``."""
    return load(program(module, example, target), example, target)


def load(program: nn.Module | bytes, example: Tensor, target: Target) -> Session:
    """Loads a deployed program into the target's runtime, with ``example`` bound.

    Runs it once, unless it runs on another device.

    Args:
        program: a result of ``program``, or an exported PyTorch program.
        example: float32.

    Raises:
        Unsupported: the runtime refuses the network. Faults of the machine, such as a lack of memory, are
            raised unchanged.
        UserError: as ``check``; this machine lacks the runtime or the device.
    """
    check(target)
    if fix := RUNTIMES[target.runtime].missing:
        raise UserError(
            "unavailable", f"target {target.name!r}: runtime {target.runtime} is not installed; {fix}"
        )
    if target.device != "cpu" and (torch.device(target.device).index or 0) >= torch.cuda.device_count():
        raise UserError(
            "unavailable",
            f"target {target.name!r}: device {target.device} is not available on this machine; "
            "measure the target on a node that has it",
        )
    runtime = RUNTIMES[target.runtime]
    with refusals(f"target {target.name!r}: {runtime.title}"):
        session = runtime.load(program, example, target)
        # Some runtimes refuse a network only when it runs.
        if not runtime.is_remote:
            session.run()
    return session
