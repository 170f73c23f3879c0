from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from lana_ray import registry
from lana_ray.commands.verify import Verification, _latency_check, render, verify
from lana_ray.config import MeasureConfig, Target, load_config
from lana_ray.costs.hardware import processor
from lana_ray.deploy import to_onnx
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.registry import Model, Student
from lana_ray.registry.verification import problem

from ..device import Device
from ..errors import refuses
from ..runs import settings

SHAPE = (3, 8, 8)
CLASSES = ("cat", "dog", "newt")
QUICK = MeasureConfig(time_limit_s=0.02, soak_s=0)
ORT = Target(name="ort-1t", runtime="onnxruntime", input_shape=SHAPE, measure=QUICK)
TORCH = Target(name="torch-1t", runtime="torch", input_shape=SHAPE, measure=QUICK)
BF16 = TORCH.model_copy(update={"name": "torch-bf16", "precision": "bf16"})
OPENVINO = ORT.model_copy(update={"name": "openvino-1t", "runtime": "openvino"})


def _network(width: int) -> nn.Module:
    torch.manual_seed(width)
    layers = (
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*layers, nn.Linear(width, len(CLASSES))).eval()


def _model(width: int, target: Target) -> Model:
    network = _network(width)
    images = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images)
    return Model(
        network=network,
        input_shape=SHAPE,
        classes=CLASSES,
        verification={"images": images, "labels": torch.arange(16) % len(CLASSES), "logits": logits},
        onnx=to_onnx(network, images, dynamic_batch=True) if RUNTIMES[target.runtime].loads_onnx else None,
    )


@dataclass(frozen=True)
class Registered:
    """A registry with one teacher per target."""

    uri: str

    def register(
        self, key: str, target: Target, recorded: Mapping[str, Tensor] | None = None, **tags: str
    ) -> str:
        """A version within its budget by far, unless ``tags`` and ``recorded`` say otherwise; its URI."""
        model = _model(4, target)
        values = {
            "latency_ms": "0.02",
            "sustained_latency_ms": "0.02",
            "teacher_latency_ms": "0.04",
            "budget_ms": "1e6",
            "speedup": "2",
            "accuracy": "0.5",
            "teacher_accuracy": "0.5",
            "architecture": "1",
            "student_fingerprint": key,
            "teacher_fingerprint": "t",
            "target_fingerprint": target.name,
            "target_settings": target.model_dump_json(),
            "processor": processor(target),
            "validation_accuracy": "0.5",
            "runtime": target.runtime,
            "run_directory": "d",
            **tags,
        }
        student = Student(
            model=replace(model, verification={**model.verification, **(recorded or {})}),
            target=target.name,
            budget=values.pop("budget", "1e6ms"),
            teacher="tiny",
            tags=values,
        )
        (version,) = registry.register(
            [student],
            {target.name: _model(8, target)},
            parent="p0",
            tracking_uri=self.uri,
            prefix="tiny",
        )
        judged = [(version, problem(version, self.uri))]
        registry.promote(judged, tracking_uri=self.uri, default_budget="1e6ms")
        return version.model_uri

    def verify(self, model_uri: str, target: str | None = None) -> Verification:
        return verify(model_uri, tracking_uri=self.uri, target=target)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return Registered(f"sqlite:///{tmp_path_factory.mktemp('verify')}/mlflow.db")


def _failed(verification: Verification) -> list[str]:
    assert verification.ok == all(check.ok is not False for check in verification.checks)
    return [check.name for check in verification.checks if check.ok is False]


def _text(verification: Verification) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(render(verification))
    return captured.get()


@pytest.mark.parametrize("target", [ORT, OPENVINO, TORCH, BF16], ids=lambda target: target.name)
def test_sound_version_is_verified(registered: Registered, target: Target) -> None:
    if RUNTIMES[target.runtime].loads_onnx:
        pytest.importorskip(target.runtime)
    uri = registered.register("sound", target)
    cpus, threads = os.sched_getaffinity(0), torch.get_num_threads()
    verification = registered.verify(uri, target.name)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cpus, threads)
    assert [check.ok for check in verification.checks] == [True] * len(verification.checks)
    assert [check.name for check in verification.checks] == [
        "outputs of model.pt2",
        f"outputs in {target.runtime}",
        "accuracy",
        f"teacher's outputs in {target.runtime}",
        "processor",
        "latency",
    ]
    assert verification.teacher_ms == 0.04  # corrected by what is registered of the teacher
    assert verification.measured.median_ms > 0
    text = _text(verification)
    assert f"{uri} for {target.name}" in text
    assert "verified" in text
    assert "within the budget of 1e+06 ms" in text


def test_champion_is_found_by_its_alias(registered: Registered) -> None:
    uri = registered.register("champion", TORCH)
    version = registered.verify("models:/tiny-torch-1t@champion").version
    assert version.model_uri == uri
    assert version.is_verified


def test_other_outputs_fail(registered: Registered) -> None:
    logits = _model(4, TORCH).verification["logits"]
    uri = registered.register("outputs", TORCH, {"logits": logits.roll(1, dims=1)})
    verification = registered.verify(uri)
    assert _failed(verification) == ["outputs of model.pt2", "outputs in torch", "accuracy"]
    assert "failed" in _text(verification)
    assert verification.version.aliases == ()
    assert verification.version.tags["verified"].startswith("failed: outputs of model.pt2: differ")


def test_outputs_that_are_no_numbers_fail(registered: Registered) -> None:
    uri = registered.register("nan", TORCH, {"logits": torch.full((16, len(CLASSES)), float("nan"))})
    assert "outputs of model.pt2" in _failed(registered.verify(uri))


def test_latency_over_the_budget_fails(registered: Registered) -> None:
    uri = registered.register("over", TORCH, budget_ms="1e-6")
    verification = registered.verify(uri)
    assert _failed(verification) == ["latency"]
    assert "over the budget of 1e-06 ms" in _text(verification)


@pytest.mark.parametrize(
    ("sessions_ms", "ok", "says"),
    [
        ([0.8, 0.9, 1.2], True, "0.9 ms is within the budget of 1 ms; 3 sessions took 0.8 to 1.2 ms"),
        ([0.8, 1.0, 1.2], True, "1 ms is within"),
        ([0.9, 1.1, 1.2], None, "1.1 ms is over the budget of 1 ms; .*not quiet enough to decide"),
        ([1.01, 1.1, 1.2], False, "1.1 ms is over the budget of 1 ms; 3 sessions took 1.01 to 1.2 ms"),
    ],
)
def test_sessions_on_both_sides_of_the_budget_are_no_verdict(
    sessions_ms: list[float], ok: bool | None, says: str
) -> None:
    check = _latency_check(sessions_ms[::-1], 1.0, judge=True)
    assert check.ok is ok
    assert re.search(says, check.detail)


def test_other_hardware_is_judged_only_as_the_target(registered: Registered) -> None:
    uri = registered.register("moved", TORCH, processor="Z80", budget="0.0001%")
    verification = registered.verify(uri)
    assert {check.name: check.ok for check in verification.checks if not check.ok} == {
        "processor": None,
        "latency": None,
    }
    assert verification.ok
    assert verification.limit_ms == pytest.approx(1e-6 * verification.teacher_ms)
    assert "was measured on Z80" in _text(verification)
    assert _failed(registered.verify(uri, TORCH.name)) == ["latency"]


def test_what_cannot_be_verified_says_why(registered: Registered, tmp_path: Path) -> None:
    uri = registered.register("sound", TORCH)
    with refuses("invalid_setting", uri, "'torch-1t'", "'xeon'"):
        registered.verify(uri, "xeon")
    with refuses("unknown_name", "models:/tiny-torch-1t/999"):
        registered.verify("models:/tiny-torch-1t/999")
    odd = registered.register("odd", TORCH, target_settings='{"name": "torch-1t", "cores": 3}')
    with refuses("invalid_file", odd, "target_settings", "register it again"):
        registered.verify(odd)
    if not torch.cuda.is_available():
        gpu = TORCH.model_copy(update={"device": "cuda"})
        uri = registered.register("gpu", TORCH, target_settings=gpu.model_dump_json())
        with refuses("unavailable", "target 'torch-1t'", "device cuda"):
            registered.verify(uri)


def test_a_command_line_comes_from_the_user_and_never_from_a_registry(
    registered: Registered, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    device = Device(tmp_path)
    device.breaks("echo 0.5")
    target = device.target(name="board", input_shape=SHAPE, measure=QUICK)
    uri = registered.register("board", target)  # with its command line, as whoever writes there may have it
    asked = (tmp_path / "asked").read_text()
    version = registry.find(uri, registered.uri)
    with refuses("invalid_setting", uri, "command line", "--config"):
        registered.verify(uri)
    assert "--config" in (problem(version, registered.uri) or "")
    assert (tmp_path / "asked").read_text() == asked
    assert problem(version, registered.uri, device.command) is None
    config = load_config(
        settings(tmp_path, targets=[target.model_dump(mode="json", exclude={"input_shape"})])
    )
    verification = verify(uri, tracking_uri=registered.uri, config=config)
    assert verification.ok
    assert verification.measured.raw_ms == 0.5
    device.update("board 1, firmware 2\n")
    verification = verify(uri, tracking_uri=registered.uri, config=config)
    assert "this is board 1, firmware 2; " in _text(verification)


def test_damaged_files_are_named(registered: Registered) -> None:
    uri = registered.register("damaged", ORT)
    version = registry.find(uri, registered.uri)
    root = Path(registered.uri.removeprefix("sqlite:///")).parent
    teacher = version.tags["teacher_model"]
    (onnx,) = (file for file in root.rglob("model.onnx") if teacher in file.parts)
    onnx.write_bytes(onnx.read_bytes()[:100])
    with refuses("refused", "target 'ort-1t'", "ONNX Runtime"):
        registered.verify(uri)
    assert problem(version, registered.uri) is None  # the student's own files are whole
    for file in root.rglob("model.onnx"):
        file.write_bytes(file.read_bytes()[:100])
    assert "ONNX Runtime refuses the network" in (problem(version, registered.uri) or "")
    for file in root.rglob("verification.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with refuses("damaged_file", "verification.safetensors", "register it again"):
        registered.verify(uri)
