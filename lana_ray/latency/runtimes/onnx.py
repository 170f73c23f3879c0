"""ONNX Runtime on the CPU or, with its CUDA provider, on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.errors import UserError
from lana_ray.export import to_onnx

PACKAGE = "onnxruntime"
EXTRA = "onnx"
LOADS_ONNX = True


class OnnxSession:
    """Runs an ONNX program with exactly the target's threads; the runtime folds batch-norms itself."""

    def __init__(self, program: bytes, example: Tensor, target: Target) -> None:
        import onnxruntime  # an optional extra

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider" if target.device.startswith("cuda") else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(
                f"target {target.name!r}: this onnxruntime has no {provider}; pip install onnxruntime-gpu"
            )
        try:
            self._session = onnxruntime.InferenceSession(program, options, providers=[provider])
        except Exception as error:  # onnxruntime's errors share no base class
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"target {target.name!r}: ONNX Runtime refuses the network ({reason})") from None
        self._name = self._session.get_inputs()[0].name
        self._batch = self._session.get_inputs()[0].shape[0]
        self._feed = {self._name: example.contiguous().numpy()}

    def run(self) -> object:
        return self._session.run(None, self._feed)

    def predict(self, images: Tensor) -> Tensor:
        if not isinstance(self._batch, int):  # the program takes any number of images at once
            return self._outputs(images)
        missing = -len(images) % self._batch
        padded = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
        return torch.cat([self._outputs(part) for part in torch.split(padded, self._batch)])[: len(images)]

    def _outputs(self, images: Tensor) -> Tensor:
        (output,) = self._session.run(None, {self._name: images.contiguous().numpy()})
        return torch.from_numpy(output)


def program(module: nn.Module, example: Tensor) -> bytes:
    return to_onnx(module, example, dynamic_batch=False)


def load(program: bytes, example: Tensor, target: Target) -> OnnxSession:
    return OnnxSession(program, example, target)
