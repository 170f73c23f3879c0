"""What every meter must do, and how they are asked."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from lana_ray.config import MeasureConfig, Target
from lana_ray.costs.registry import Meter, unavailable
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.errors import UserError
from lana_ray.latency import METERS, metered

from ..errors import refuses
from ..small_networks import net

pytestmark = pytest.mark.usefixtures("own_process")
QUICK = MeasureConfig(rel_error=0.5, time_limit_s=0.01, soak_s=0)
TARGET = Target(name="here", batch_size=2, input_shape=(3, 16, 16), measure=QUICK)


@pytest.fixture(params=METERS)
def meter(request: pytest.FixtureRequest) -> Meter:
    return METERS[request.param]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_meter_reads_or_says_why_not_and_leaves_the_network_alone(meter: Meter, device: str) -> None:
    target = TARGET.model_copy(update={"device": device})
    network = net(5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    if reason := meter.unavailable(target):
        assert "\n" not in reason
        with pytest.raises(
            UserError, match=f"target 'here': {meter.name} is not available on this node, bec"
        ):
            metered(network, target, [meter.name])
    else:
        assert metered(network, target, [meter.name])[meter.name] > 0
    assert all(part.training for part in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_meters_are_listed_by_their_names() -> None:
    assert list(METERS) == ["latency_ms", "peak_memory_mb", "energy_mj", "params", "macs"]
    assert all(name == METERS[name].name for name in METERS)
    assert all(METERS[name].unit for name in METERS)


def test_the_costs_are_those_asked_for() -> None:
    costs = metered(net(5), TARGET, ["macs", "latency_ms"])
    assert list(costs) == ["macs", "latency_ms"]
    assert costs == {**costs, "macs": metered(net(5), TARGET, ["macs"])["macs"]}


def test_by_default_what_the_node_can_read_is_read() -> None:
    assert list(metered(net(5), TARGET)) == [name for name in METERS if name not in unavailable(TARGET)]


def test_an_example_takes_the_place_of_the_targets_shape() -> None:
    larger = metered(net(5), TARGET, ["macs"], example=torch.zeros(1, 3, 32, 32))["macs"]
    assert larger == pytest.approx(4 * metered(net(5), TARGET, ["macs"])["macs"], rel=0.01)


def test_an_unknown_name_lists_the_meters() -> None:
    with refuses("unknown_name", "meter 'flops'", "latency_ms, peak_memory_mb, "):
        metered(net(5), TARGET, ["flops"])


def test_what_is_missing_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = dataclasses.replace(RUNTIMES["onnxruntime"], packages=("no-such-package",))
    monkeypatch.setitem(RUNTIMES, "onnxruntime", lost)
    target = TARGET.model_copy(update={"runtime": "onnxruntime"})
    reasons = unavailable(target)
    assert set(reasons) == {"latency_ms", "peak_memory_mb", "energy_mj"}
    assert set(reasons.values()) == {
        "the runtime onnxruntime is not installed (pip install 'lana-ray[onnx]')"
    }
    with pytest.raises(
        UserError, match="target 'here': latency_ms is not available on this node, because the"
    ):
        metered(net(5), target, ["macs", "latency_ms"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reasons = unavailable(TARGET.model_copy(update={"device": "cuda:3"}))
    assert reasons["energy_mj"] == "torch finds no device cuda:3"
