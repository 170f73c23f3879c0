"""What ``lana-ray plan`` counts, against the networks themselves."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from lana_ray import cli
from lana_ray.commands import plan
from lana_ray.config import load_config
from lana_ray.costs.registry import METERS
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.errors import UserError
from lana_ray.preflight.planned import in_words
from lana_ray.stages.distill import trained_weights
from lana_ray.workspace import Workspace, structural_space

from ..runs import NETWORKS, settings

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def _settings(folder: Path, **changes: Any) -> dict[str, Any]:
    ops = ["identity", "pruned_w0.5", "mbconv_e1_k3", "conv_pair_w0.5_k3"]
    pool = {"pool": {"ops": ops}, "ray": {"address": "local"}}
    return settings(folder, **{**pool, **changes})


def _shown(config: dict[str, Any]) -> str:
    text = io.StringIO()
    Console(file=text, width=400).print(plan.plan(load_config(config)), markup=False)
    return text.getvalue()


def test_weights_are_those_of_all_candidates(tmp_path: Path) -> None:
    space = structural_space(load_config(_settings(tmp_path)), 10)
    ops = [(i, j, op) for i, of_layer in enumerate(space.ops) for j, op in enumerate(of_layer)]
    every = [(i, j, op) for i, j, op in ops if space.is_trained(i, j)]
    assert any(op.of_teacher for *_, op in every)
    expected = sum(w.numel() for i, j, _ in every for w in space.candidate(i, j).parameters())
    assert trained_weights(space) == expected


def test_the_size_of_distillation_and_fine_tuning_is_told(tmp_path: Path) -> None:
    """8 candidates, 8 steps of 32 images, each candidate alone; half an epoch."""
    config = load_config(_settings(tmp_path))
    space, target = structural_space(config, 10), Workspace(config).targets[0]
    candidates = sum(space.is_trained(i, j) for i, choices in enumerate(space.everything) for j in choices)
    macs = METERS["macs"].read(space.network, example_input(target), target)
    shown = _shown(_settings(tmp_path))
    assert candidates == 8
    assert "64 steps of a candidate: 2,048 images through candidates" in shown
    assert f"at least 2,048 through the teacher, {in_words(2048 * macs)} multiply-accumulates" in shown
    assert f"{4 * trained_weights(space):,} bytes of weights to keep" in shown
    train = Workspace(config).data.sizes["train"]
    steps = round(train * 0.5 / 64)
    assert f"{steps} steps each: {steps * 64:,} images through the student" in shown


def test_the_command_line_of_a_device_is_shown_without_passwords(tmp_path: Path) -> None:
    command = {"run": "bench http://me:secret@board {program}", "version": "no-such-program"}
    target = {"name": "board", "runtime": "command", "command": command}
    shown = _shown(_settings(tmp_path, targets=[target]))
    assert "board (command, fp32" in shown
    assert "bench http://***@board {program}" in shown


def test_data_that_is_not_here_is_noted_and_unusable_data_is_refused(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    assert "not here: data.folder" in _shown(_settings(tmp_path, data={"folder": str(pictures)}))
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "0.png")
    with pytest.raises(UserError, match=r"data\.folder .*pictures: 1 image directly in it"):
        _shown(_settings(tmp_path, data={"folder": str(pictures)}))


def test_what_was_inferred_about_the_data_is_shown(tmp_path: Path) -> None:
    for split in ("Train", "valid"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (8, 8)).save(folder / f"{number}{split}.png")
    data = {"folder": str(tmp_path / "pictures"), "image_size": 8}
    shown = _shown(_settings(tmp_path, data=data, distill={"steps": 8}, finetune={"epochs": 0.5}))
    assert "20 test images; 2 classes" in shown
    assert f"test images are {tmp_path / 'pictures' / 'valid'}" in shown
    assert "brightest value is 0" in shown


def test_what_becomes_of_random_weights_is_told(tmp_path: Path) -> None:
    adapt = {"epochs": 1.5}
    shown = _shown(_settings(tmp_path, teacher={"timm": "mobilenetv3_small_050", "adapt": adapt}))
    assert "trained for 1.5 epochs first" in shown
    shown = _shown(_settings(tmp_path, teacher={"factory": f"{NETWORKS}:at_random", "adapt": adapt}))
    assert "trained for" not in shown
    assert f"warning: {NETWORKS}:at_random draws weights at random" in shown


def test_the_order_of_the_classes_is_shown(tmp_path: Path) -> None:
    """By which a teacher trained elsewhere is right or wrong; names that are numbers sort as text."""
    for name in ("2", "10", "1"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number, 20 * int(name), 255)).save(folder / f"{number}.png")
    data = {"folder": str(tmp_path / "pictures"), "image_size": 8}
    shown = _shown(_settings(tmp_path, data=data, distill={"steps": 8}, finetune={"epochs": 0.5}))
    assert "in this order: 1, 10, 2" in shown


def test_a_target_that_cannot_be_measured_here_is_told_beside_its_name(tmp_path: Path) -> None:
    wide = {"name": "wide", "runtime": "torch", "threads": 4096}
    shown = _shown(_settings(tmp_path, targets=[{"name": "eager", "runtime": "torch"}, wide]))
    assert shown.count("cannot run now: target 'wide': threads 4096") == 1
    assert shown.count("standing in: no node is labelled") == 1


def test_workers_are_told_or_why_there_are_none(tmp_path: Path) -> None:
    one = {"address": "local", "workers": 1, "cpus_per_worker": 1}
    shown = _shown(_settings(tmp_path, ray=one))
    assert "distill: 1 worker of 1 CPU" in shown
    assert "finetune: 1 worker of 1 CPU" in shown
    shown = _shown(_settings(tmp_path, ray={**one, "cpus_per_worker": 4096}))
    assert "cannot run now: ray.cpus_per_worker 4096" in shown
    shown = _shown(_settings(tmp_path, ray={**one, "cpus_per_worker": 4096, "label_wait_s": 60}))
    assert "would wait 60 s for a node: ray.cpus_per_worker 4096" in shown


def test_searches_are_told_where_they_are_asked_for(tmp_path: Path) -> None:
    assert "lana-ray search" not in _shown(_settings(tmp_path))
    assert "with lana-ray search:" in _shown(_settings(tmp_path, search={"trials": 3}))


def test_an_extra_is_named_as_pip_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its brackets are no markup."""
    lost = dataclasses.replace(RUNTIMES["onnxruntime"], packages=("no-such-package",))
    monkeypatch.setitem(RUNTIMES, "onnxruntime", lost)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(_settings(tmp_path / "run")))
    cli.plan(file)
    assert "pip install 'lana-ray[onnx]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1e6, "1 million"),
        (13.69e9, "13.7 billion"),
        (2.05e18, "2.05 quintillion"),
    ],
)
def test_large_numbers_are_words(number: float, words: str) -> None:
    assert in_words(number) == words
