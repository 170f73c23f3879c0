"""What a run's work depends on: what changes of it is said, and what it was is kept in the run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lana_ray.config import Config, load_config
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.stages import teacher
from lana_ray.workspace import Workspace

from .data.samples import picture, write_folder

NET = """
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Block


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(3, classes)
        self.act = getattr(F, Path(__file__).with_name("act.txt").read_text().strip())

    def forward(self, x):
        for block in self.blocks:
            x = self.act(block(x))
        return self.head(x.mean((2, 3)))


def make(num_classes):
    return Net(num_classes)
"""
BLOCKS = """
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x):
        return self.conv(x).relu()
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_folder(tmp_path / "images", 20)
    for name, text in (("net.py", NET), ("blocks.py", BLOCKS), ("act.txt", "relu")):
        (tmp_path / name).write_text(text)
    return load_config(
        {
            "run": {"dir": str(tmp_path / "run")},
            "teacher": {"factory": f"{tmp_path}/net.py:make"},
            "data": {"folder": str(tmp_path / "images"), "image_size": 16, "score_images": 4},
            "targets": [{"name": "a"}],
            "budgets": {"latency_ms": "50%"},
        }
    )


def run(config: Config) -> tuple[str, str]:
    """The teacher's key, and that of its candidates; as a process of its own would find them."""
    workspace = Workspace(config)
    teacher.run(workspace)
    return workspace.teacher_key, workspace.candidate_key(workspace.space.ids[0][0])


def test_what_is_the_same_is_reused(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config) == run(config)
    said = capsys.readouterr().out
    assert "make reused" in said
    assert "changed" not in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("net.py: self.act(block(x)) → F.gelu(block(x))", "net.py, the teacher's answers"),
        ("blocks.py: relu → sigmoid", "blocks.py, the teacher's answers"),
        ("act.txt: relu → gelu", "the teacher's answers"),  # of which no code tells
        ("images/cat/3.png", "the images or labels"),
    ],
)
def test_what_changed_is_said_and_has_another_key(
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    says: str,
) -> None:
    before = run(config)
    name, _, line = change.partition(": ")
    file = tmp_path / name
    if line:
        old, new = line.split(" → ")
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    else:
        picture(77).save(file)
    after = run(config)
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert f"changed since the last run: {says}; dependent results are recomputed" in capsys.readouterr().out


def test_a_comment_changes_nothing(config: Config, tmp_path: Path) -> None:
    before = run(config)
    (tmp_path / "net.py").write_text(f"{NET}\n# a thought\n")
    assert run(config) == before


def test_answers_rounded_otherwise_are_the_same(config: Config) -> None:
    before, storage = run(config), Storage(config.run.dir)
    for factor, same in ((1 + 1e-5, True), (1.1, False)):
        answers = storage.read_tensors(layout.ANSWERS)["answers"]
        storage.write_tensors(layout.ANSWERS, {"answers": answers * factor}, {})
        recorded = torch.equal(run_answers(config, storage), answers * factor)
        assert recorded == same
    assert run(config) == before


def run_answers(config: Config, storage: Storage) -> torch.Tensor:
    """What is recorded after a run."""
    run(config)
    return storage.read_tensors(layout.ANSWERS)["answers"]


def test_the_run_directory_knows_the_factory(config: Config, tmp_path: Path) -> None:
    run(config)
    assert (tmp_path / "run" / "factory" / "net.py").read_text() == NET
    assert (tmp_path / "run" / "factory" / "blocks.py").read_text() == BLOCKS
    identity = json.loads((tmp_path / "run" / layout.IDENTITY).read_text())
    assert {"torch", "timm", "net.py", "blocks.py", "lana_ray"} <= identity.keys()
