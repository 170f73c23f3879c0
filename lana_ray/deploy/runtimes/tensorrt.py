"""TensorRT on an NVIDIA GPU: builds a strongly typed engine from the ONNX program, on the GPU that runs it.

Strongly typed means that every tensor has the type that the program gives it, so the target's precision is
that of the exported network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lana_ray.config import Target
from lana_ray.deploy import INPUT_NAME, OUTPUT_NAME
from lana_ray.deploy.runtimes.runtime import DTYPES, Runtime, in_batches, typed_onnx
from lana_ray.errors import Unsupported, UserError


class TensorRTSession:
    """An engine of the example's shape, which reads and writes torch's tensors on its own stream."""

    def __init__(self, program: bytes, example: Tensor, target: Target) -> None:
        import tensorrt  # an optional extra

        self._device, self._dtype = torch.device(target.device), DTYPES[target.precision]
        # TensorRT builds for the current device.
        with torch.cuda.device(self._device):
            logger = tensorrt.Logger(tensorrt.Logger.ERROR)
            plan = _build(tensorrt, logger, program, example, target)
            self._runtime = tensorrt.Runtime(logger)  # must outlive its engine
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
        """Binds ``images`` as the input, after other streams have finished writing them."""
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


def _build(tensorrt: Any, logger: Any, program: bytes, example: Tensor, target: Target) -> Any:
    """Returns the serialized engine of an ONNX program, for batches of the example's shape."""
    builder = tensorrt.Builder(logger)
    # From TensorRT 11 on, networks are always strongly typed.
    strongly_typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(program):
        reason = " ".join(parser.get_error(0).desc().split())[:200]
        raise Unsupported("refused", f"target {target.name!r}: TensorRT refuses the network ({reason})")
    # A free batch dimension would need an optimization profile.
    network.get_input(0).shape = tuple(example.shape)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    # TensorRT gives no reason, which may be a lack of memory, so this is not Unsupported.
    if plan is None:
        raise UserError(
            "failed",
            f"target {target.name!r}: TensorRT could not build an engine of the network; see its log above",
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
    load=TensorRTSession,
)
