"""``measure``: one network on one target, in this process."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from lana_ray.config import MeasureConfig
from lana_ray.costs.timing import MIN_ROUNDS, Reference
from lana_ray.deploy.inputs import example_input
from lana_ray.latency import Measurement, Target, measure

from ..errors import refuses
from ..small_networks import net

pytestmark = pytest.mark.usefixtures("own_process")
QUICK = MeasureConfig(rel_error=0.5, time_limit_s=0.01, soak_s=0)


def target(runtime: str = "torch", **settings: object) -> Target:
    return Target.model_validate(
        {"name": "here", "runtime": runtime, "input_shape": (3, 16, 16), "measure": QUICK, **settings}
    )


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_measurement_is_whole(runtime: str) -> None:
    if runtime != "torch":
        pytest.importorskip(runtime)
    m = measure(net(5), target(runtime))
    assert isinstance(m, Measurement)
    assert 0 < m.median_ms < 1000
    assert m.median_ms == pytest.approx(m.raw_ms)
    assert m.iqr_ms >= 0
    assert m.repeats >= MIN_ROUNDS


def test_the_network_is_left_as_it_was() -> None:
    network = net(5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure(network, target(batch_size=2))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.get_parameter("stem.weight").is_contiguous(memory_format=torch.channels_last)


class _Watched(nn.Module):
    seen: ClassVar[list[tuple[tuple[int, ...], bool]]] = []  # shared with the runtime's copy

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((tuple(images.shape), self.training))
        return images


def test_the_batch_is_the_targets_and_the_mode_is_evaluation() -> None:
    _Watched.seen.clear()
    measure(_Watched(), target(batch_size=3))
    assert set(_Watched.seen) == {((3, 3, 16, 16), False)}


def test_an_example_takes_the_place_of_the_targets_shape() -> None:
    _Watched.seen.clear()
    measure(_Watched(), target(), example=torch.zeros(2, 7))
    assert {shape for shape, _ in _Watched.seen} == {(2, 7)}


def test_a_reference_is_timed_in_turn() -> None:
    network = net(5).eval()
    images = example_input(target())
    with torch.no_grad():
        reference = Reference(run=lambda: network(images), baseline_ms=1000.0)
        m = measure(net(5), target(), references=[reference])
    assert m.median_ms > 10 * m.raw_ms
    assert m.drift == pytest.approx(m.raw_ms / m.median_ms)


def test_examples_are_the_same_whenever_asked() -> None:
    torch.manual_seed(1)
    first = example_input(target(batch_size=2))
    torch.manual_seed(2)
    assert torch.equal(example_input(target(batch_size=2)), first)
    assert first.shape == (2, 3, 16, 16)
    assert example_input(Target(name="a")).shape == (1, 3, 224, 224)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_device_is_named() -> None:
    with refuses("unavailable", "target 'here'", "device cuda:0"):
        measure(net(5), target(device="cuda:0"))
