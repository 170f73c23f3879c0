"""ONNX Runtime on the CPU or, with its CUDA provider, on a GPU.

It has few half-precision kernels for CPUs and would run the rest in float32, so fp16 is refused there.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lana_ray.config import Target
from lana_ray.deploy.runtimes.runtime import DTYPES, PROFILED_CALLS, Runtime, in_batches, typed_onnx
from lana_ray.errors import Unsupported, UserError


class OnnxSession:
    """Runs an ONNX program with exactly the target's threads; the runtime folds batch-norms itself."""

    def __init__(self, program: bytes, example: Tensor, target: Target, profile: str = "") -> None:
        import onnxruntime  # an optional extra

        options = onnxruntime.SessionOptions()
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        provider, settings = "CPUExecutionProvider", {}
        if target.device.startswith("cuda"):
            provider = "CUDAExecutionProvider"
            settings = {"device_id": torch.device(target.device).index or 0}
        if provider not in onnxruntime.get_available_providers():
            raise UserError(
                "unavailable",
                f"target {target.name!r}: this onnxruntime has no {provider}; pip install onnxruntime-gpu",
            )
        self._session = onnxruntime.InferenceSession(program, options, providers=[(provider, settings)])
        # ONNX Runtime falls back to the CPU without an error.
        if provider not in self._session.get_providers():
            raise UserError(
                "unavailable",
                f"target {target.name!r}: ONNX Runtime could not start its {provider}; install the CUDA and "
                "cuDNN versions that this onnxruntime-gpu was built for",
            )
        self._name = self._session.get_inputs()[0].name
        self._batch = self._session.get_inputs()[0].shape[0]
        self._dtype = DTYPES[target.precision]
        self._feed = self._fed(example)

    def _fed(self, images: Tensor) -> dict[str, object]:
        return {self._name: images.to(self._dtype).contiguous().numpy()}

    def run(self) -> object:
        return self._session.run(None, self._feed)

    def end_profiling(self) -> Path:
        """Returns the file with what was profiled."""
        return Path(self._session.end_profiling())

    def predict(self, images: Tensor) -> Tensor:
        # With a free batch dimension, the program takes any number of images at once.
        if not isinstance(self._batch, int):
            return self._outputs(images)
        return in_batches(self._outputs, images, self._batch)

    def _outputs(self, images: Tensor) -> Tensor:
        (output,) = self._session.run(None, self._fed(images))
        return torch.from_numpy(output).float()


def profile(program: bytes, example: Tensor, target: Target) -> dict[str, list[float]]:
    if target.device != "cpu":
        raise Unsupported("refused", "ONNX Runtime's profile has only the launches of a GPU's kernels")
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        session = OnnxSession(program, example, target, f"{folder}/profile")
        for _ in range(PROFILED_CALLS):
            session.run()
        events = json.loads(session.end_profiling().read_text())
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = f"{event['name']}/{event['args']['node_index']}"
            took.setdefault(name, []).append(event["dur"] / 1e3)
    return took


RUNTIME = Runtime(
    name="onnxruntime",
    title="ONNX Runtime",
    packages=("onnxruntime", "onnxruntime-gpu"),
    extra="onnx",
    precisions={"cpu": ("fp32",), "cuda": ("fp32", "fp16")},
    loads_onnx=True,
    program=typed_onnx,
    load=OnnxSession,
    profile=profile,
)
