"""PyTorch with ``torch.compile``: Inductor compiles the same program that ``torch`` runs into kernels.

On a CPU, the kernels are C++ and need a compiler on the node; on a GPU, they are Triton's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes import torch_eager
from lana_ray.deploy.runtimes.runtime import Runtime, in_batches
from lana_ray.deploy.runtimes.torch_eager import EagerSession
from lana_ray.errors import UserError


class CompiledSession(EagerSession):
    """A program that its first run compiles for the shape of its example."""

    def __init__(self, module: nn.Module, example: Tensor, target: Target) -> None:
        super().__init__(module, example, target)
        _check_compiler(target)
        options: dict[str, str | int | bool | Callable[..., Any]] = {
            "cpp.threads": target.threads,  # compiled into the kernels, and part of their cache key
            "compile_threads": 1,  # no helper processes that are still running while networks are timed
        }
        self.module.compile(fullgraph=True, dynamic=False, options=options)

    def predict(self, images: Tensor) -> Tensor:
        return in_batches(super().predict, images, len(self.example))


def load(program: nn.Module, example: Tensor, target: Target) -> CompiledSession:
    return CompiledSession(copy.deepcopy(program), example, target)


def _check_compiler(target: Target) -> None:
    if target.device != "cpu":
        return
    # This imports all of Inductor.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "unavailable",
            f"target {target.name!r}: runtime torch-compile needs a C++ compiler on this machine; "
            "install g++ or set CXX to a compiler",
        ) from None


RUNTIME = Runtime(
    name="torch-compile",
    title="torch.compile",
    packages=("torch",),
    extra="torch",
    precisions=torch_eager.RUNTIME.precisions,
    loads_onnx=False,
    program=torch_eager.program,
    load=load,
)
