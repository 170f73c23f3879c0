"""Ordinary networks are taken, with the same answers in every process; others are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lana_ray.commands.plan import plan
from lana_ray.deploy import to_onnx, to_program
from lana_ray.errors import Unsupported
from lana_ray.networks.layers import observe
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import FINGERPRINT_KEY
from lana_ray.scoring.suffixes import Suffix
from lana_ray.stages.teacher import load_checked
from lana_ray.workspace import Workspace

from .. import odd_networks
from ..errors import refuses
from ..odd_networks import REFUSED, WORKING, Answering, Checking, made
from ..test_workspace import configuration, write_candidate

IMAGES = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def workspace_of(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose teacher is one of the odd networks."""
    kind = WORKING.get(name) or REFUSED[name][0]
    monkeypatch.setattr(odd_networks, "factory", made(kind), raising=False)
    targets = [{"name": "a"}, {"name": "b", "runtime": "torch"}]
    teacher = {"factory": "tests.odd_networks:factory"}
    return Workspace(configuration(folder, teacher=teacher, targets=targets))


@pytest.mark.parametrize("name", WORKING)
def test_ordinary_networks_are_taken_and_learn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are checked, written, read, scored, made into students, trained and exported, as in the stages."""
    workspace = workspace_of(tmp_path, name, monkeypatch)
    loaded = load_checked(workspace)
    expected = loaded.network(IMAGES.clone())
    workspace.storage.write_tensors(layout.TEACHER, loaded.network.state_dict(), {FINGERPRINT_KEY: "k"})
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    assert torch.allclose(workspace.teacher(images), expected, atol=1e-4)
    assert torch.equal(images, before)
    assert [layer.residual for layer in workspace.layers] == [True, True]
    _assert_suffixes(workspace, images, expected)

    write_candidate(workspace, 0, 2, 0.25)
    student = workspace.student((2, 0)).train()
    if name != "layer drop":
        _assert_all_learn(student, images)
    program = to_program(student.to(memory_format=torch.contiguous_format), IMAGES, dynamic_batch=True)
    with torch.no_grad():
        answers = student.eval()(images[:3])
        assert torch.allclose(program(images[:3]), answers, atol=1e-4)


def _assert_suffixes(workspace: Workspace, images: torch.Tensor, expected: torch.Tensor) -> None:
    seen = observe(workspace.teacher, [layer.name for layer in workspace.layers], images)
    with torch.no_grad():
        for position, layer in enumerate(workspace.layers):
            suffix = Suffix(workspace.teacher, workspace.layers, position, images)
            assert torch.allclose(suffix(seen[layer.name][1]), expected, atol=1e-4)
            assert suffix(seen[layer.name][1][:3]).shape == (3, 3)


def _assert_all_learn(student: nn.Module, images: torch.Tensor) -> None:
    """A gradient reaches every parameter that is to learn."""
    answer = student(images)
    logits = answer[0] if isinstance(answer, tuple) else answer
    logits.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in student.parameters())


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("plain", set()),
        ("all frozen", set()),
        ("a frozen stem", {"stem.weight", "stem.bias"}),
        ("fixed parameters", {"positions", "order"}),
        ("an unused head", {"auxiliary.weight", "auxiliary.bias"}),
    ],
)
def test_what_is_frozen_or_unused_stays_so(
    name: str, fixed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of(tmp_path, name, monkeypatch)
    state = workspace.loaded.network.state_dict()
    workspace.storage.write_tensors(layout.TEACHER, state, {FINGERPRINT_KEY: "k"})
    for network in (workspace.student((0, 0)), workspace.teacher_to_train()):
        assert {n for n, p in network.named_parameters() if not p.requires_grad} == fixed
    assert not any(p.requires_grad for p in workspace.teacher.parameters())


def test_what_is_odd_and_harmless_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_checked(workspace_of(tmp_path, "an unused head", monkeypatch))
    assert "auxiliary.weight, auxiliary.bias" in capsys.readouterr().out
    load_checked(workspace_of(tmp_path, "a frozen stem", monkeypatch))
    assert "stem.bias, stem.weight, made without gradient" in capsys.readouterr().out
    load_checked(workspace_of(tmp_path, "layer drop", monkeypatch))
    assert "at random" in capsys.readouterr().out
    load_checked(workspace_of(tmp_path, "plain", monkeypatch))
    assert capsys.readouterr().out == ""


def test_a_plan_refuses_what_a_run_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data here and without."""
    workspace = workspace_of(tmp_path, "a long shortcut", monkeypatch)
    gone = workspace.config.data.model_copy(update={"folder": str(tmp_path / "gone")})
    for config in (workspace.config, workspace.config.model_copy(update={"data": gone})):
        with refuses("unsupported_network", "layer blocks.1 "):
            plan(config)


def test_onnx_is_tried_for_targets_that_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Bessel function has no ONNX operator."""
    monkeypatch.setattr(odd_networks, "factory", made(lambda: Answering(torch.special.i0)), raising=False)
    teacher = {"factory": "tests.odd_networks:factory"}
    targets = [{"name": "t", "runtime": "torch"}]
    load_checked(Workspace(configuration(tmp_path, teacher=teacher, targets=targets)))
    onnx = [*targets, {"name": "o", "runtime": "onnxruntime"}]
    with pytest.raises(Unsupported) as unsupported:
        to_onnx(Answering(torch.special.i0).eval(), IMAGES[:1], dynamic_batch=False)
    with refuses(unsupported.value.code, "target 'o'", "ONNX"):
        load_checked(Workspace(configuration(tmp_path, teacher=teacher, targets=onnx)))


def test_normalisation_may_be_set(tmp_path: Path) -> None:
    data = configuration(tmp_path).data.model_dump() | {"mean": (0.1, 0.2, 0.3), "std": (1, 2, 3)}
    preprocessing = Workspace(configuration(tmp_path, data=data)).data.preprocessing
    assert preprocessing.mean == (0.1, 0.2, 0.3)
    assert preprocessing.std == (1, 2, 3)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_of(tmp_path, name, monkeypatch)
    with refuses("unsupported_network", *REFUSED[name][1]) as error:
        load_checked(workspace)
    assert "\x1b" not in str(error.value)


def test_a_network_that_torch_cannot_export_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odd_networks, "factory", made(Checking), raising=False)
    teacher = {"factory": "tests.odd_networks:factory"}
    with pytest.raises(Unsupported, match=r"Checking: torch\.export") as error:
        load_checked(Workspace(configuration(tmp_path, teacher=teacher, targets=[{"name": "a"}])))
    assert not set("\n\x1b") & set(str(error.value))
