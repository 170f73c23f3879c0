"""PyTorch itself, operator by operator, channels-last."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.export import to_program

PACKAGE = "torch"
EXTRA = "torch"
LOADS_ONNX = False


class EagerSession:
    """Runs a program, which it takes over; images are laid out channels-last, which CPUs and GPUs prefer."""

    def __init__(self, module: nn.Module, example: Tensor, target: Target) -> None:
        torch.set_num_threads(target.threads)
        self._device = torch.device(target.device)
        self._module = module.to(self._device)
        if example.ndim == 4:
            self._module = self._module.to(memory_format=torch.channels_last)
        self._example = self._place(example)

    def _place(self, images: Tensor) -> Tensor:
        images = images.to(self._device)
        return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images

    @torch.inference_mode()
    def run(self) -> object:
        output = self._module(self._example)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return output

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        output: Tensor = self._module(self._place(images))
        return output.cpu().clone()


def program(module: nn.Module, example: Tensor) -> nn.Module:
    return to_program(module, example, dynamic_batch=False)


def load(program: nn.Module, example: Tensor, target: Target) -> EagerSession:
    return EagerSession(copy.deepcopy(program), example, target)
