"""PyTorch in eager mode: operator by operator, channels-last.

A CPU without instructions for fp16 or bf16 converts to float32 and back in every operator. Such a target is
measured like any other; it is slower than in fp32.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, fx, nn

from lana_ray.config import Target
from lana_ray.deploy import to_program
from lana_ray.deploy.runtimes.runtime import DTYPES, PROFILED_CALLS, ROOT, Runtime


class EagerSession:
    """Casts a program to the target's precision and runs it channels-last, which is faster."""

    def __init__(self, module: nn.Module, example: Tensor, target: Target) -> None:
        torch.set_num_threads(target.threads)
        self._device, self._dtype = torch.device(target.device), DTYPES[target.precision]
        self.module = module.to(self._device, self._dtype)
        if example.ndim == 4:
            self.module = self.module.to(memory_format=torch.channels_last)
        self.example = self._place(example)

    def _place(self, images: Tensor) -> Tensor:
        images = images.to(self._device, self._dtype)
        return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images

    @torch.inference_mode()
    def run(self) -> object:
        output = self.module(self.example)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return output

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        output: Tensor = self.module(self._place(images))
        return output.to("cpu", torch.float32, copy=True)


class _Timed(fx.Interpreter):
    """Runs a program operator by operator, each of which is finished before the next one."""

    def __init__(self, program: Any, device: torch.device) -> None:
        super().__init__(program)
        self._device = device
        self.took: dict[str, list[float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        begin = time.perf_counter()
        output = super().run_node(n)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if n.op == "call_function":
            modules = [path for path, _ in n.meta.get("nn_module_stack", {}).values() if path]
            took_ms = 1e3 * (time.perf_counter() - begin)
            self.took.setdefault("/".join(["", ROOT, *modules, n.name]), []).append(took_ms)
        return output


@torch.inference_mode()
def profile(program: nn.Module, example: Tensor, target: Target) -> dict[str, list[float]]:
    session = load(program, example, target)
    timed = _Timed(session.module, session.example.device)
    for _ in range(PROFILED_CALLS):
        timed.run(session.example)
    return timed.took


def program(module: nn.Module, example: Tensor, target: Target) -> nn.Module:
    """Exports a float32 program for any precision: the session casts it."""
    return to_program(module, example, dynamic_batch=False)


def load(program: nn.Module, example: Tensor, target: Target) -> EagerSession:
    return EagerSession(copy.deepcopy(program), example, target)


RUNTIME = Runtime(
    name="torch",
    title="PyTorch",
    packages=("torch",),
    extra="torch",
    precisions={"cpu": ("fp32", "fp16", "bf16"), "cuda": ("fp32", "fp16", "bf16")},
    loads_onnx=False,
    program=program,
    load=load,
    profile=profile,
)
