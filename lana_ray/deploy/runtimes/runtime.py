"""What a runtime offers: a new one is a module with a ``Runtime``, listed in ``RUNTIMES``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lana_ray.config import Target


class Session(Protocol):
    """A network loaded into a runtime, with an input bound to it."""

    def run(self) -> object:
        """One inference of the bound input, finished when it returns."""

    def predict(self, images: Tensor) -> Tensor:
        """The network's output for another batch, float32 on the CPU whatever the target's precision.

        With runtime ``torch`` the batch is of the bound one's size, unless the program takes any.
        """


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How networks run on a target."""

    name: str
    """As in ``targets.runtime``."""
    title: str
    """As its makers write it."""
    packages: tuple[str, ...]
    """The distributions that carry it, any of which will do."""
    extra: str
    """Of this package, which installs one."""
    precisions: Mapping[str, tuple[str, ...]]
    """What it computes in, by the kind of device it runs on: ``cpu``, ``cuda``."""
    loads_onnx: bool
    """Whether its programs are ONNX, else they are PyTorch's."""
    program: Callable[[nn.Module, Tensor, Target], Any]
    """The module as it is deployed, made without the runtime's packages."""
    load: Callable[[Any, Tensor, Target], Session]
    """A program with an example bound; the runtime's packages are imported no earlier."""

    @property
    def version(self) -> str | None:
        """Of the package behind it, None where none is installed."""
        for package in self.packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    @property
    def missing(self) -> str | None:
        """What to install for it; None where it is there."""
        return None if self.version else f"pip install 'lana-ray[{self.extra}]'"
