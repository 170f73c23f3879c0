"""Runtimes: how a network runs on a target.

A new one is a module with ``PACKAGE``, the ``EXTRA`` that installs it, ``LOADS_ONNX``, ``program``, ``load``.
"""

from __future__ import annotations

import importlib.metadata
from types import ModuleType
from typing import Protocol

from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.errors import UserError
from lana_ray.latency.runtimes import eager, onnx


class Session(Protocol):
    """A network loaded into a runtime, with an input bound to it."""

    def run(self) -> object:
        """One inference of the bound input, finished when it returns."""

    def predict(self, images: Tensor) -> Tensor:
        """The network's output for another batch; of the bound one's size, unless the program takes any."""


_RUNTIMES: dict[str, ModuleType] = {"torch": eager, "onnxruntime": onnx}


def version(runtime: str) -> str | None:
    """Version of the package behind a runtime, None where it is not installed."""
    try:
        return importlib.metadata.version(_RUNTIMES[runtime].PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(runtime: str) -> str | None:
    """What to install for a runtime; None where it is there."""
    extra = _RUNTIMES[runtime].EXTRA
    return None if version(runtime) else f"pip install 'lana-ray[{extra}]'"


def loads_onnx(runtime: str) -> bool:
    """Whether what is deployed on a runtime is an ONNX program; a PyTorch program otherwise."""
    return bool(_RUNTIMES[runtime].LOADS_ONNX)


def program(module: nn.Module, example: Tensor, target: Target) -> nn.Module | bytes:
    """``module`` in evaluation mode as the target's runtime deploys it; the module is left unchanged.

    Raises:
        UserError: when the runtime is not installed or refuses the network.
    """
    deployed: nn.Module | bytes = _installed(target).program(module, example)
    return deployed


def prepare(module: nn.Module, example: Tensor, target: Target) -> Session:
    """Loads ``module`` into the target's runtime, in evaluation mode, with ``example`` bound.

    Raises:
        UserError: as ``program``.
    """
    return load(program(module, example, target), example, target)


def load(program: nn.Module | bytes, example: Tensor, target: Target) -> Session:
    """Loads a program as it is deployed into the target's runtime, with ``example`` bound.

    Args:
        program: the ONNX program where ``loads_onnx``, else what an exported PyTorch program loads as.

    Raises:
        UserError: as ``program``.
    """
    session: Session = _installed(target).load(program, example, target)
    return session


def _installed(target: Target) -> ModuleType:
    mend = missing(target.runtime)
    if mend:
        raise UserError(f"target {target.name!r}: runtime {target.runtime} is not installed; {mend}")
    return _RUNTIMES[target.runtime]
