"""OpenVINO on the CPU.

Programs are in float32; fp16 and bf16 are a hint to the compiler, which ignores it on a CPU without such
instructions. The result would not have the target's precision, so this is refused.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy import to_onnx
from lana_ray.deploy.runtimes.runtime import PROFILED_CALLS, Runtime, in_batches
from lana_ray.errors import UserError

_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVINOSession:
    """An ONNX program compiled for one request at a time, of the example's shape."""

    def __init__(self, program: bytes, example: Tensor, target: Target, *, profile: bool = False) -> None:
        settings = {
            "PERF_COUNT": profile,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": target.threads,
            "ENABLE_HYPER_THREADING": True,  # otherwise limited to one thread per core
            "ENABLE_CPU_PINNING": False,  # the process is pinned already, see cluster.leases
            _PRECISION: _HINTS[target.precision],  # by default bf16 if the CPU supports it
        }
        model = _core().read_model(program)
        model.reshape(list(example.shape))
        compiled = _core().compile_model(model, "CPU", settings)
        actual = compiled.get_property(_PRECISION).get_type_name()
        if actual != _HINTS[target.precision]:
            raise UserError(
                "unavailable",
                f"target {target.name!r}: OpenVINO has no {target.precision} on this CPU and would use "
                f"{actual}; set its precision to fp32 or measure it on a node with {target.precision}",
            )
        self._request = compiled.create_infer_request()
        self._example = example.contiguous().numpy()

    def run(self) -> object:
        return self._infer(self._example)

    def profiled(self) -> dict[str, float]:
        """Milliseconds of each operator in the last call."""
        operators = enumerate(self._request.get_profiling_info())
        return {f"{one.node_name}/{i}": 1e3 * one.real_time.total_seconds() for i, one in operators}

    def predict(self, images: Tensor) -> Tensor:
        return in_batches(self._outputs, images, len(self._example))

    def _outputs(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._infer(images.contiguous().numpy()).copy())

    def _infer(self, images: Any) -> Any:
        """Returns the output for a batch; the next call overwrites it."""
        return self._request.infer(images, share_inputs=True, share_outputs=True)[0]


def program(module: nn.Module, example: Tensor, target: Target) -> bytes:
    """Exports a float32 program for any precision: the session's compiler lowers it."""
    return to_onnx(module, example, dynamic_batch=False)


def profile(program: bytes, example: Tensor, target: Target) -> dict[str, list[float]]:
    session = OpenVINOSession(program, example, target, profile=True)
    took: dict[str, list[float]] = {}
    for _ in range(PROFILED_CALLS):
        session.run()
        for name, ms in session.profiled().items():
            took.setdefault(name, []).append(ms)
    return took


@cache
def _core() -> Any:
    """Returns the process's only core, because each core would load its own CPU plugin."""
    import openvino  # an optional extra

    return openvino.Core()


RUNTIME = Runtime(
    name="openvino",
    title="OpenVINO",
    packages=("openvino",),
    extra="openvino",
    precisions={"cpu": ("fp32", "fp16", "bf16")},
    loads_onnx=True,
    program=program,
    load=OpenVINOSession,
    profile=profile,
)
