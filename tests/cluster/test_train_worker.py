"""What a training writes: every part of a network, whatever its name, and frozen ones as they were."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lana_ray.cluster.train_worker import _train
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import FINGERPRINT_KEY
from lana_ray.training.job import TrainJob
from lana_ray.training.micro import Rank

from ..preflight.test_teacher import workspace_of

_NOTED = SimpleNamespace(remote=lambda *_: None)
BOARD = SimpleNamespace(add=_NOTED, begin=_NOTED)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("an unused head", {"auxiliary.weight", "auxiliary.bias"}),
        ("a frozen stem", {"stem.weight", "stem.bias"}),
    ],
)
def test_all_parts_are_written_and_some_as_they_were(
    name: str, kept: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of(tmp_path, name, monkeypatch)
    before = workspace.loaded.network.state_dict()
    workspace.storage.write_tensors(layout.TEACHER, before, {FINGERPRINT_KEY: "k"})
    _train(
        workspace, TrainJob(file="trained.safetensors", key="k", architecture=(0, 0)), Rank(), BOARD, "worker"
    )
    after = workspace.storage.read_tensors("trained.safetensors")
    assert after.keys() == before.keys()
    parameters = {n for n, _ in workspace.teacher.named_parameters()}
    assert {n for n in parameters if torch.equal(before[n], after[n])} == kept
