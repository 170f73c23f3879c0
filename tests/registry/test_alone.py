"""What is registered runs without this package, without pickle, and in the end without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lana_ray import registry
from lana_ray.deploy import to_onnx

from .students import SHAPE, model, network, register, student

_REFUSING = """
import sys
for name in REFUSED:
    sys.modules[name] = None  # to import it is an error
"""
_OURS = {"lana_ray", "timm", "ray", "torchvision", "sklearn", "highspy", "onnxruntime", "safetensors"}
_PYTORCH = """
import pickle, mlflow, mlflow.pytorch, numpy as np, torch
mlflow.set_tracking_uri(sys.argv[1])

class Refuse:
    def __init__(self, *arguments, **options):
        raise AssertionError("unpickles")

pickle.load = pickle.loads = pickle.Unpickler = Refuse
network = mlflow.pytorch.load_model(sys.argv[2])
images = np.load(sys.argv[3])
np.savez(sys.argv[4], *[network(torch.from_numpy(images[:n])).numpy() for n in (1, len(images))])
"""
_ONNX = """
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[3])
np.savez(sys.argv[4], *[session.run(None, {"input": images[:n]})[0] for n in (1, len(images))])
"""


@dataclass(frozen=True)
class _Alone:
    """Runs code in a process of its own, which may not import some packages."""

    folder: Path
    images: torch.Tensor

    def outputs(self, code: str, refused: set[str], *arguments: str) -> list[np.ndarray]:
        """Of the first image alone and of all."""
        np.save(self.folder / "images.npy", self.images.numpy())
        files = [str(self.folder / name) for name in ("images.npy", "logits.npz")]
        command = [sys.executable, "-c", f"REFUSED = {refused!r}\n{_REFUSING}\n{code}", *arguments, *files]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        found = np.load(files[1])
        return [found[name] for name in found.files]

    def expected(self) -> list[np.ndarray]:
        with torch.no_grad():
            return [network()(self.images[:n]).numpy() for n in (1, len(self.images))]


@pytest.fixture
def alone(tmp_path: Path) -> _Alone:
    return _Alone(tmp_path, torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(0)))


def _agree(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected) == 2
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def test_a_version_needs_pytorch_and_mlflow_alone(uri: str, alone: _Alone) -> None:
    (version,) = register(uri, student("a"))
    _agree(alone.outputs(_PYTORCH, _OURS, uri, version.model_uri), alone.expected())


def test_its_onnx_file_needs_onnx_runtime_alone(uri: str, alone: _Alone) -> None:
    pytest.importorskip("onnxruntime")
    onnx = to_onnx(network(), torch.randn(2, *SHAPE), dynamic_batch=True)
    (version,) = register(uri, student("a", model=model(onnx=onnx)))
    file = registry.download(version.model_uri, registry.ONNX_FILE, alone.folder, uri)
    others = _OURS - {"onnxruntime"} | {"torch", "mlflow", "onnx", "pandas", "scipy"}
    _agree(alone.outputs(_ONNX, others, "", str(file)), alone.expected())
