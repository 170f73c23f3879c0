"""``peak_memory_mb``: what a network adds to a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lana_ray.config import Target
from lana_ray.costs import memory
from lana_ray.costs import memory_process as resident
from lana_ray.deploy.runtimes import RUNTIMES

from ..errors import refuses

TARGET = Target(name="here", input_shape=(3, 16, 16))
on_linux = pytest.mark.skipif(
    not os.access(resident.CLEAR_REFS, os.W_OK), reason="the meter is not available on this machine"
)


class _Wide(nn.Module):
    """32 MB of weights, and an activation as large."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(8_000_000))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.weights + images.mean()).sum().reshape(1, 1)


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_weights_and_activations_are_in_it(runtime: str) -> None:
    if RUNTIMES[runtime].missing:
        pytest.skip(f"{RUNTIMES[runtime].missing}")
    target = TARGET.model_copy(update={"runtime": runtime})
    read = memory.read(_Wide(), torch.zeros(1, 3, 16, 16), target)
    assert 64 < read < 90


@on_linux
def test_a_process_that_fails_says_why() -> None:
    whole, short = (nn.Identity(), torch.zeros(1)), (nn.Linear(2, 2), torch.zeros(1))
    task = resident.Task(first=whole, network=short, target=TARGET)
    with refuses("failed", "target 'here'", "peak_memory_mb", "RuntimeError: "):
        memory._resident_bytes(task)


def test_where_a_peak_cannot_be_reset_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "CLEAR_REFS", tmp_path / "clear_refs")
    assert memory.unavailable(TARGET) == (
        f"{tmp_path}/clear_refs is not writable, which Linux needs to reset a process's peak"
    )


def test_on_a_gpu_only_torch_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert memory.unavailable(Target(name="gpu", device="cuda")) is None
    reason = memory.unavailable(Target(name="gpu", device="cuda", runtime="onnxruntime"))
    assert reason == "onnxruntime allocates past torch's allocator"
