"""What the register stage adds to a student before MLflow sees it."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lana_ray
from lana_ray.config import Target
from lana_ray.registry import ONNX_FILE
from lana_ray.stages.register import _onnx
from lana_ray.tracking import commit

from ..small_networks import plain

SHAPE = (3, 8, 8)
EAGER = Target(name="eager", runtime="torch", input_shape=SHAPE)


def test_commit_is_that_of_the_packages_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lana_ray" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr(lana_ray, "__file__", str(package))

    def git(*arguments: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert commit() == version("lana-ray")
    git("init")
    git("commit", "--allow-empty", "-m", "others' code")
    assert commit() == version("lana-ray")
    git("add", ".")
    git("commit", "-m", "ours")
    assert commit() == git("rev-parse", "HEAD")
    package.write_text("changed")
    assert commit() == git("rev-parse", "HEAD") + "-dirty"


def test_a_target_of_pytorch_has_an_onnx_file_too() -> None:
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    network = plain(5).eval()
    found = _onnx(network, EAGER)
    session = ort.InferenceSession(found, providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        images = torch.randn(batch, *SHAPE)
        (logits,) = session.run(None, {"input": images.numpy()})
        np.testing.assert_allclose(logits, network(images).detach().numpy(), atol=1e-5)


class _NotInOnnx(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.eigvals(images).real.sum((1, 2))


def test_what_onnx_cannot_express_costs_a_target_of_pytorch_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _onnx(_NotInOnnx(), EAGER) is None
    assert f"register: eager: no {ONNX_FILE}: " in capsys.readouterr().out
