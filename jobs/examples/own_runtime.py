"""Example of your own runtime: TorchScript, as phones ran it before ExecuTorch.

Put the module into ``lana_ray/deploy/runtimes/`` and its ``RUNTIME`` into ``RUNTIMES`` there to use it in
settings and ``lana-ray doctor``. ``pytest jobs/examples/own_runtime.py`` runs the tests that all runtimes
pass.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy import to_program
from lana_ray.deploy.runtimes.runtime import Runtime
from lana_ray.testing import RuntimeSuite


@dataclass
class ScriptSession:
    """A traced network and the batch it runs on."""

    network: Any
    example: Tensor

    @torch.inference_mode()
    def run(self) -> object:
        return self.network(self.example)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        output: Tensor = self.network(images.contiguous())
        return output.clone()


def program(module: nn.Module, example: Tensor, target: Target) -> nn.Module:
    """Returns the module for ``load`` to trace, since a traced one cannot be sent between processes."""
    return to_program(module, example, dynamic_batch=False)


def load(program: nn.Module, example: Tensor, target: Target) -> ScriptSession:
    torch.set_num_threads(target.threads)
    # The program shares its weights with the network that it was made of.
    own = copy.deepcopy(program)
    traced = torch.jit.trace(own, (example,))  # type: ignore[no-untyped-call]
    return ScriptSession(traced, example.contiguous())


RUNTIME = Runtime(
    name="torchscript",
    title="TorchScript",
    packages=("torch",),
    extra="torch",
    precisions={"cpu": ("fp32",)},
    loads_onnx=False,
    program=program,
    load=load,
)


class TestTorchScript(RuntimeSuite):
    runtime = RUNTIME
