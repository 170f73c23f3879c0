"""TensorRT on an NVIDIA GPU: an engine built from the ONNX program where it runs, strongly typed.

Strongly typed: every tensor has the type that the program gives it, so a target's precision is that of the
exported network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lana_ray.config import Target
from lana_ray.deploy import INPUT_NAME, OUTPUT_NAME
from lana_ray.deploy.runtimes.runtime import Runtime
from lana_ray.deploy.runtimes.tensors import DTYPES, in_batches, typed_onnx
from lana_ray.errors import Unsupported, UserError


class TensorRTSession:
    """An engine of the example's shape, which reads and writes torch's tensors on a stream of its own."""

    def __init__(self, program: bytes, example: Tensor, target: Target) -> None:
        import tensorrt  # an optional extra

        self._device, self._dtype = torch.device(target.device), DTYPES[target.precision]
        with torch.cuda.device(self._device):  # the one that TensorRT builds for
            logger = tensorrt.Logger(tensorrt.Logger.ERROR)
            plan = _build(tensorrt, logger, program, example, target)
            self._runtime = tensorrt.Runtime(logger)  # has to outlive its engine
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            self._context = self._engine.create_execution_context()
            self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._example = self._place(example)
        shape = tuple(self._engine.get_tensor_shape(OUTPUT_NAME))
        self._output = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._context.set_tensor_address(OUTPUT_NAME, self._output.data_ptr())
        self._bind(self._example)

    def _place(self, images: Tensor) -> Tensor:
        return images.to(self._device, self._dtype).contiguous()

    def _bind(self, images: Tensor) -> None:
        """Makes ``images`` the input, once what is under way on other streams has written them."""
        torch.cuda.synchronize(self._device)
        self._context.set_tensor_address(INPUT_NAME, images.data_ptr())

    def run(self) -> object:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("TensorRT could not enqueue the network; its log says why")
        self._stream.synchronize()
        return self._output

    def predict(self, images: Tensor) -> Tensor:
        return in_batches(self._outputs, images, len(self._example))

    def _outputs(self, images: Tensor) -> Tensor:
        placed = self._place(images)
        self._bind(placed)
        self.run()
        self._bind(self._example)
        return self._output.to("cpu", torch.float32, copy=True)


def load(program: bytes, example: Tensor, target: Target) -> TensorRTSession:
    return TensorRTSession(program, example, target)


def _build(tensorrt: Any, logger: Any, program: bytes, example: Tensor, target: Target) -> Any:
    """The serialized engine of an ONNX program, for batches of the example's shape."""
    builder = tensorrt.Builder(logger)
    strongly_typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # always so from 11 on
    network = builder.create_network(strongly_typed)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(program):
        reason = " ".join(parser.get_error(0).desc().split())[:200]
        raise Unsupported(f"target {target.name!r}: TensorRT refuses the network ({reason})")
    network.get_input(0).shape = tuple(example.shape)  # a free batch dimension would need a profile
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:  # out of memory perhaps: it does not say
        raise UserError(
            f"target {target.name!r}: TensorRT builds no engine of the network; its log above says why"
        )
    return plan


RUNTIME = Runtime(
    name="tensorrt",
    title="TensorRT",
    packages=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    extra="tensorrt",
    precisions={"cuda": ("fp32", "fp16", "bf16")},
    loads_onnx=True,
    program=typed_onnx,
    load=load,
)
