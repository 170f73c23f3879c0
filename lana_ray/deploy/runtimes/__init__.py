"""Runtimes: how a network runs on a target.

A new one is a module with

- ``NAME``: what it is called;
- ``PACKAGES``: the distributions that carry it, any of which will do, and the ``EXTRA`` that installs one;
- ``PRECISIONS``: what it computes in, by the kind of device it runs on;
- ``LOADS_ONNX``: whether its programs are ONNX, else they are PyTorch's;
- ``program(module, example, target)``: the module as it is deployed, made without the runtime's packages;
- ``load(program, example, target)``: a ``Session``, with the runtime's packages imported no earlier.
"""

from __future__ import annotations

import importlib.metadata
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes import onnxruntime, openvino, tensorrt, torch_compile, torch_eager
from lana_ray.errors import UserError, refusals


class Session(Protocol):
    """A network loaded into a runtime, with an input bound to it."""

    def run(self) -> object:
        """One inference of the bound input, finished when it returns."""

    def predict(self, images: Tensor) -> Tensor:
        """The network's output for another batch, float32 on the CPU whatever the target's precision.

        With runtime ``torch`` the batch is of the bound one's size, unless the program takes any.
        """


_RUNTIMES: dict[str, ModuleType] = {
    "torch": torch_eager,
    "torch-compile": torch_compile,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "tensorrt": tensorrt,
}


def version(runtime: str) -> str | None:
    """Version of the package behind a runtime, None where it is not installed."""
    for package in _RUNTIMES[runtime].PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def missing(runtime: str) -> str | None:
    """What to install for a runtime; None where it is there."""
    extra = _RUNTIMES[runtime].EXTRA
    return None if version(runtime) else f"pip install 'lana-ray[{extra}]'"


def loads_onnx(runtime: str) -> bool:
    """Whether what is deployed on a runtime is an ONNX program; a PyTorch program otherwise."""
    return bool(_RUNTIMES[runtime].LOADS_ONNX)


def precisions(runtime: str) -> dict[str, tuple[str, ...]]:
    """What a runtime computes in, by the kind of device it runs on: ``cpu``, ``cuda``."""
    return dict(_RUNTIMES[runtime].PRECISIONS)


def check(target: Target) -> None:
    """Refuses a target whose runtime knows no such device or precision, on whatever machine.

    Raises:
        UserError: naming the target and what to set instead.
    """
    known, kind = precisions(target.runtime), target.device.partition(":")[0]
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
    deployed: nn.Module | bytes = _RUNTIMES[target.runtime].program(module, example, target)
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
        program: the ONNX program where ``loads_onnx``, else what an exported PyTorch program loads as.
        example: float32.

    Raises:
        Unsupported: when the runtime refuses the network. Faults of the machine, such as a lack of memory,
            are raised as they are.
        UserError: as ``check``, and when this machine lacks the runtime or the device.
    """
    check(target)
    if mend := missing(target.runtime):
        raise UserError(f"target {target.name!r}: runtime {target.runtime} is not installed; {mend}")
    if target.device != "cpu" and (torch.device(target.device).index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"target {target.name!r}: device {target.device} is not available on this machine; "
            "measure it on a node that has it"
        )
    runtime = _RUNTIMES[target.runtime]
    with refusals(f"target {target.name!r}: {runtime.NAME}"):
        session: Session = runtime.load(program, example, target)
        session.run()  # some refuse what they have loaded
    return session
