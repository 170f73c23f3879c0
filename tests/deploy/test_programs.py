"""Programs of candidates and of whole networks: exported once, and those of the networks that are built."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy import programs as programs_module
from lana_ray.deploy.inputs import example_input, layer_input
from lana_ray.deploy.programs import Programs
from lana_ray.deploy.runtimes import load, program
from lana_ray.networks.layers import find_layers
from lana_ray.spaces import LayerwiseSpace

from ..errors import refuses
from ..small_networks import Block, Net

POOL = ["identity", "mbconv_e1_k3", "conv_pair_w1_k3", "repvgg_w1_k3"]
WIDE = "bottleneck_w1000_k7"  # 12 GB of weights at 8 channels


def _target(runtime: str, **settings: object) -> Target:
    if runtime != "torch":
        pytest.importorskip(runtime)
    return Target.model_validate(
        {"name": "here", "runtime": runtime, "batch_size": 3, "input_shape": (3, 16, 16), **settings}
    )


def _space(network: nn.Module | None = None, *, more: Sequence[str] = ()) -> LayerwiseSpace:
    torch.manual_seed(0)
    network = (network or Net(num_classes=5)).eval()
    return LayerwiseSpace(network, find_layers(network, torch.randn(2, 3, 16, 16)), [*POOL, *more])


class _Twins(Net):
    """Two layers of the same structure."""

    def __init__(self) -> None:
        super().__init__(num_classes=5)
        self.blocks = nn.ModuleList([Block(8, 8, 1), Block(8, 8, 1), Block(8, 16, 2)])


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the modules that were exported."""
    seen: list[str] = []

    def noted(module: nn.Module, *args: Any) -> object:
        seen.append(type(module).__name__)
        return program(module, *args)

    monkeypatch.setattr(programs_module, "program", noted)
    return seen


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_networks_answer_as_those_that_are_built(runtime: str, exported: list[str]) -> None:
    of, target = _space(), _target(runtime)
    programs, images = Programs(of, target), example_input(target)
    assert exported == ["Net"]
    rng = np.random.default_rng(0)
    for architecture in [of.teacher, *(of.random(rng) for _ in range(4))]:
        session = load(programs.network(architecture), images, target)
        with torch.no_grad():
            expected = of.build(architecture).eval()(images)
        torch.testing.assert_close(session.predict(images), expected, rtol=1e-3, atol=1e-4)
    assert exported.count("Net") == 1  # only parts were exported after the frame


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_equal_structures_are_exported_once(runtime: str, exported: list[str]) -> None:
    of, target = _space(_Twins()), _target(runtime)
    programs = Programs(of, target)
    choice = [op.name for op in of.ops[0]].index("conv_pair_w1_k3")
    for _ in range(2):
        for layer in (0, 1):
            session = load(programs.candidate(layer, choice), layer_input(of, layer, target), target)
            assert session.predict(layer_input(of, layer, target)).shape == (3, 8, 16, 16)
        programs.network((choice, choice, 0))
    assert len(exported) == 3  # the frame, the candidate, and the teacher's third layer


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, exported: list[str]) -> None:
    """Where nothing can be kept, everything is exported again, and is the same."""
    of, target = _space(), _target("torch")
    monkeypatch.setattr(programs_module, "_KEPT_BYTES", 0)
    programs = Programs(of, target)
    first, second = (programs.network((1, 2, 0)) for _ in range(2))
    assert len(exported) == 6  # the frame, and all but the identity twice
    with torch.no_grad():
        images = example_input(target)
        torch.testing.assert_close(first(images), second(images))  # type: ignore[operator]


class _Peeking(Net):
    """Reads an attribute of a layer beside calling it."""

    def forward(self, x: Tensor) -> Tensor:
        middle = self.blocks.get_submodule("1")
        return super().forward(x if middle.get_submodule("body") else -x)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_what_cannot_be_left_open_is_exported_whole(runtime: str, exported: list[str]) -> None:
    of, target = _space(_Peeking(num_classes=5)), _target(runtime)
    programs, images = Programs(of, target), example_input(target)
    session = load(programs.network((0, 0, 1)), images, target)
    assert exported == ["_Peeking"] * 2
    with torch.no_grad():
        expected = of.build((0, 0, 1)).eval()(images)
    torch.testing.assert_close(session.predict(images), expected, rtol=1e-3, atol=1e-4)


def test_a_candidate_with_more_weights_than_the_teacher_is_never_made() -> None:
    space = _space(more=[WIDE])
    with refuses("refused", "0.0 million") as error:
        Programs(space, _target("torch")).candidate(0, len(space.ops[0]) - 1)
    assert re.match(r"3\d{3} million weights", str(error.value))
