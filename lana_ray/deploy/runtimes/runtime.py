"""The interface of runtimes, and what they share: tensor types, typed programs and batches.

To add a runtime, write a module with a ``Runtime`` and list it in ``RUNTIMES``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy import to_onnx
from lana_ray.deploy.half import cast_onnx

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""A target's precision -> torch's type."""
PROFILED_CALLS = 50
"""Calls behind a profile."""
ROOT = "network"
"""Name of the whole network in the names of operators."""


class Session(Protocol):
    """A network loaded into a runtime with a bound input."""

    def run(self) -> object:
        """Runs one inference of the bound input, which is finished on return.

        If the runtime ``is_remote``, has the device measure the program instead, and returns a list of the
        calls' milliseconds; raises DeviceError if that fails.
        """

    def predict(self, images: Tensor) -> Tensor:
        """Returns the network's output for another batch, as float32 on the CPU for any precision.

        With the runtime ``torch``, the batch must have the bound input's size, unless the program takes any.
        """


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How networks run on a target."""

    name: str
    """Name in ``targets.runtime``."""
    title: str
    """Official spelling of its name."""
    packages: tuple[str, ...]
    """Distributions that contain it; one is enough. Empty if it needs none."""
    extra: str
    """The extra of this package that installs one of them."""
    precisions: Mapping[str, tuple[str, ...]]
    """Kind of device (``cpu``, ``cuda``) -> precisions that it supports there."""
    loads_onnx: bool
    """Whether its programs are ONNX; otherwise they are PyTorch's."""
    program: Callable[[nn.Module, Tensor, Target], Any]
    """Callback ``(module, example, target)``: exports the module; must not need the runtime's packages."""
    load: Callable[[Any, Tensor, Target], Session]
    """Callback ``(program, example, target)``: loads a program; imports the runtime's packages."""
    profile: Callable[[Any, Tensor, Target], Mapping[str, Sequence[float]]] | None = None
    """Callback ``(program, example, target)``: calls a program ``PROFILED_CALLS`` times; returns for each of
    its operators the milliseconds of every call, by a name that contains the names of the modules around it
    from ``ROOT`` on, between slashes, as ONNX programs have them. None if the runtime has no profile."""
    identity: Callable[[Target], str] | None = None
    """Callback ``(target)``: asks the device on which networks run for a line that names it and its software;
    raises DeviceError if it does not answer. None if networks run in the process that loads them."""

    @property
    def is_remote(self) -> bool:
        """Whether networks run on another device, which times them itself."""
        return self.identity is not None

    @property
    def version(self) -> str | None:
        """Version of the installed package; None if none is installed, or none is needed."""
        for package in self.packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    @property
    def missing(self) -> str | None:
        """The command that installs it; None if it is installed, or needs no package."""
        return None if self.version or not self.packages else f"pip install 'lana-ray[{self.extra}]'"


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
