"""Networks that a device times itself: correction, samples, and what its failures mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from lana_ray.config import MeasureConfig, Target
from lana_ray.costs.remote_timing import time_runs
from lana_ray.costs.sampler import Sampler
from lana_ray.costs.session_process import SessionProcess
from lana_ray.costs.timing import Call, Measurement, Reference, Timing
from lana_ray.costs.work import candidate_work, in_sessions, network_work, student_work
from lana_ray.deploy.runtimes import program
from lana_ray.errors import DeviceError, Unsupported
from lana_ray.networks.layers import find_layers
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces import LayerwiseSpace

from ..device import Device
from ..errors import refuses
from ..small_networks import net

pytestmark = pytest.mark.usefixtures("own_process")
AWAY = DeviceError("failed", "away")
BOARD = Target(name="board")


def once(run: Call, *references: Reference) -> Measurement:
    return time_runs(run, BOARD, Timing(rel_error=0.01, time_limit_s=1e-9), references)


def answers(*each: list[float] | DeviceError) -> Call:
    """A session's ``run`` that gives these answers in turn, and the last one again and again."""
    left = list(each)

    def run() -> list[float]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, DeviceError):
            raise answer
        return answer

    return run


def test_every_round_is_corrected_to_the_baseline_of_the_references() -> None:
    slow = Reference(run=answers([8.0, 8.0, 90.0], [16.0]), baseline_ms=4.0)
    m = once(answers([6.0, 9.0, 12.0]), slow)
    assert (m.raw_ms, m.median_ms, m.iqr_ms) == (9.0, 3.0, 1.0)  # 12 instead of 4 between before and after
    assert (m.drift, m.repeats, m.settled) == (3.0, 3, False)
    small, large = (
        Reference(run=answers([2.0]), baseline_ms=1.0),
        Reference(run=answers([12.0]), baseline_ms=9.0),
    )
    assert once(answers([7.0]), small, large).median_ms == 5.0


def test_it_ends_once_enough_rounds_agree() -> None:
    m = time_runs(answers([2.0] * 4), BOARD, Timing(rel_error=0.01, time_limit_s=60.0), ())
    assert (m.repeats, m.median_ms, m.settled) == (12, 2.0, True)


def test_calls_of_one_run_that_agree_do_not_settle_runs_that_differ() -> None:
    runs = itertools.cycle([[2.0] * 150, [3.0] * 150, [2.5] * 150])
    m = time_runs(lambda: next(runs), BOARD, Timing(rel_error=0.01, time_limit_s=0.01), ())
    assert not m.settled


def test_quantiles_are_those_of_all_calls_that_the_device_prints() -> None:
    every = [float(ms) for ms in range(1, 101)]
    timing = Timing(rel_error=1.0, time_limit_s=1e-9, calls=200)
    m = time_runs(answers(every), BOARD, timing, [Reference(run=answers([2.0]), baseline_ms=1.0)])
    assert (m.repeats, m.median_ms) == (200, 25.25)
    assert (m.p90_ms, m.p99_ms) == pytest.approx((45.0, 49.5), abs=0.1)


def test_a_device_that_prints_one_average_has_no_quantiles() -> None:
    assert math.isnan(time_runs(answers([2.0]), BOARD, Timing(rel_error=1.0, time_limit_s=1e-9), ()).p99_ms)
    with refuses("invalid_setting", "target 'board'", "printed 1 numbers"):
        time_runs(answers([2.0]), BOARD, Timing(rel_error=1.0, time_limit_s=1e-9, calls=200), ())


@pytest.mark.parametrize(
    ("network", "teacher", "error"),
    [
        ([AWAY], [[4.0]], Unsupported),
        ([AWAY, [2.0]], [[4.0]], None),
        ([AWAY], [[4.0], AWAY], DeviceError),
        ([[2.0]], [AWAY], DeviceError),
        ([[2.0]], [[4.0], AWAY], DeviceError),
    ],
    ids=["refused", "a hiccup", "away", "away before", "away after"],
)
def test_a_network_is_refused_only_while_a_reference_runs(
    network: list[list[float] | DeviceError],
    teacher: list[list[float] | DeviceError],
    error: type[Exception] | None,
) -> None:
    reference = Reference(run=answers(*teacher), baseline_ms=4.0)
    if error is None:
        assert once(answers(*network), reference).median_ms == 2.0
        return
    with pytest.raises(error, match="away"):
        once(answers(*network), reference)


def test_without_a_reference_nothing_is_refused() -> None:
    with pytest.raises(DeviceError, match="away"):
        once(answers(AWAY))


def space() -> LayerwiseSpace:
    network = net(5).eval()
    layers = find_layers(network, torch.randn(2, 3, 16, 16))
    return LayerwiseSpace(network, layers, ["identity", "mbconv_e1_k3_se0.25"])


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


@pytest.fixture
def target(device: Device) -> Target:
    return device.target(measure=MeasureConfig(rel_error=0.5, time_limit_s=0.01, soak_s=0))


def bytes_of(of: LayerwiseSpace, architecture: Iterable[int], target: Target) -> int:
    made = program(of.build(tuple(architecture)), torch.zeros(1, 3, 16, 16), target)
    assert isinstance(made, bytes)
    return len(made)


def test_samples_are_what_the_device_prints(device: Device, target: Target, tmp_path: Path) -> None:
    of, storage = space(), Storage(str(tmp_path))
    storage.write_tensors("a.safetensors", of.build((0, 0, 1)).state_dict(), {})
    student = student_work(of, (0, 0, 1), "a.safetensors", "a")
    asked = [candidate_work(of, 0, 0), network_work(of, (1, 0, 0)), *in_sessions([student], range(2))]
    sampler = Sampler(of, target, storage)
    *references, candidate, network, one, two = sampler.sample(asked, [])
    sampler.close()
    assert [sample.key for sample in references][-1] == "teacher"
    assert references[-1].median_ms == pytest.approx(1000 + bytes_of(of, of.teacher, target), rel=0.05)
    assert one.median_ms == pytest.approx(two.median_ms)
    assert one.process != two.process
    for sample in (*references, candidate, network, one, two):
        assert sample.error is None
        assert sample.median_ms == pytest.approx(sample.raw_ms)
        assert sample.raw_ms > 1000
        assert sample.processor == "board 1, firmware 1.0"
        assert sample.runtime == f"command {device.command.run}"


def test_another_device_or_firmware_shares_no_samples(device: Device, target: Target, tmp_path: Path) -> None:
    of, storage = space(), Storage(str(tmp_path))

    def key(of_target: Target) -> str:
        return Sampler(of, of_target, storage).target_key()

    first = key(target)
    patient, other = (
        target.model_copy(update={"command": device.command.model_copy(update=changed)})
        for changed in ({"timeout_s": 9.0}, {"run": f"{device.command.run} --fast"})
    )
    assert key(patient) == first
    assert key(other) != first
    kept = Sampler(of, target, storage)
    assert kept.target_key() == first
    device.update("board 1, firmware 1.1\n")
    updated = kept.target_key()
    assert updated not in (first, key(other))
    (sample,) = kept.sample([network_work(of, (1, 0, 0))], [5000.0])
    assert (sample.target_key, sample.processor) == (updated, "board 1, firmware 1.1")


def test_what_the_device_cannot_run_is_a_sample_with_an_error(
    device: Device, target: Target, tmp_path: Path
) -> None:
    of = space()
    device.refuses("Sigmoid")  # of squeeze-and-excitation
    refused, measured = (candidate_work(of, 0, choice) for choice in (2, 0))
    samples = list(Sampler(of, target, Storage(str(tmp_path))).sample([refused, measured], [5000.0]))
    assert "unsupported operator" in str(samples[0].error)
    assert samples[1].error is None
    _check_session(of, device, target)


def _check_session(of: LayerwiseSpace, device: Device, target: Target) -> None:
    """A session in a process of its own tells a refusal from a device that is away, too."""
    example = torch.zeros(1, 3, 16, 16)
    teacher, other = (program(of.build(a), example, target) for a in (of.teacher, (2, 0, 0)))
    process, timing = (
        SessionProcess(target, [(teacher, example)], [5000.0]),
        Timing(rel_error=0.01, time_limit_s=1e-9),
    )
    try:
        with pytest.raises(Unsupported, match="unsupported operator"):
            process.time((other, example), timing)
        device.disappears()
        with pytest.raises(DeviceError, match=r"target 'board'.*no route"):
            process.time((teacher, example), timing)
        device.returns()
        assert process.time((teacher, example), timing).median_ms > 1000
    finally:
        process.close()


def test_a_device_that_is_away_leaves_no_sample(device: Device, target: Target, tmp_path: Path) -> None:
    of = space()
    sampler, item = Sampler(of, target, Storage(str(tmp_path))), network_work(of, (1, 0, 0))
    device.disappears()
    with refuses("failed", "target 'board'", "no route"):
        next(sampler.sample([item], [5000.0]))
    with refuses("failed", "target 'board'", "command.version", "no route"):
        Sampler(of, target, Storage(str(tmp_path)))
    device.returns()
    (sample,) = sampler.sample([item], [5000.0])
    assert sample.error is None


def test_a_floor_that_the_device_cannot_run_is_no_reference(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = space()
    target = device.target(measure=MeasureConfig(rel_error=0.5, time_limit_s=0.01, soak_s=0))
    floor = program(of.build((1, 0, 1)), torch.zeros(1, 3, 16, 16), target)
    assert isinstance(floor, bytes)
    device.breaks(f'[ "$(wc -c < "$1")" -le {len(floor) + 200} ] && exit 1; echo 2')
    samples = list(Sampler(of, target, Storage(str(tmp_path))).sample([], []))
    assert [sample.key for sample in samples] == ["teacher"]
    assert "only the teacher measures drift" in capsys.readouterr().out


def test_a_network_whose_export_fails_is_refused_as_elsewhere(target: Target, tmp_path: Path) -> None:
    class Bessel(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(images)

    with pytest.raises(Unsupported, match="ONNX cannot express it"):
        program(Bessel(), torch.zeros(1, 3, 16, 16), target)
