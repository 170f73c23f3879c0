"""The runtime ``command``: what its command line is given, and what it may answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lana_ray.config import CommandConfig, Target
from lana_ray.costs.registry import metered, unavailable
from lana_ray.deploy.runtimes import prepare, software
from lana_ray.deploy.runtimes.command import identity
from lana_ray.errors import DeviceError, UserError

from ..device import Device
from ..errors import refuses
from ..small_networks import net

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def command(run: str, version: str = "echo board", timeout_s: float = 60.0) -> Target:
    settings = CommandConfig(run=run, version=version, timeout_s=timeout_s)
    return Target(name="board", runtime="command", command=settings, input_shape=(3, 16, 16))


def test_every_line_is_a_round(device: Device, tmp_path: Path) -> None:
    device.breaks(f'cp "$1" {tmp_path}/copy.onnx; printf " 2.5 \\n\\n1e-1\\r\\n3"')
    session = prepare(net(3), EXAMPLE, device.target())
    assert device.runs == 0  # as its device may be elsewhere, loading asks it nothing
    assert session.run() == [2.5, 0.1, 3.0]
    from onnx import checker  # the file is a whole program

    checker.check_model(str(tmp_path / "copy.onnx"))


@pytest.mark.parametrize(
    ("instead", "named"),
    [
        ("echo starting >&2; echo bad operator >&2; exit 3", ["ended with status 3 (bad operator)"]),
        ("exit 1", ["ended with status 1 (no message)"]),
        ("true", ["printed nothing"]),
        ("echo 1.5; echo warming up; echo 2.5", ["printed 'warming up' instead of milliseconds"]),
        ("echo 0", ["printed '0'"]),
        ("echo -- -1", ["printed '-- -1'"]),
        ("echo nan", ["printed 'nan'"]),
        ("echo inf", ["printed 'inf'"]),
        ("kill -9 $$", ["ended with status -9"]),
        ("yes 1.25 | head -c 1100000", ["printed more than 1 MiB"]),
        ("echo mysql://me:secret@host/ >&2; exit 1", ["mysql://***@host/"]),
    ],
)
def test_any_other_answer_is_refused_with_the_command(device: Device, instead: str, named: list[str]) -> None:
    device.breaks(instead)
    session = prepare(net(3), EXAMPLE, device.target())
    with refuses("failed", "target 'board'", "command.run ", "device.sh {program}", *named) as error:
        session.run()
    assert error.type is DeviceError


def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $! $$ > {pids}; wait # {{program}}"
    session = prepare(net(3), EXAMPLE, command(f"sh -c '{script}'", timeout_s=1))
    with refuses("failed", "target 'board'", "command.run did not end within 1 s"):
        session.run()
    for pid in pids.read_text().split():
        _await_end(int(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
def test_a_command_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"""
import torch
from lana_ray.deploy.runtimes import prepare
from tests.deploy.test_command import command
from tests.small_networks import net
target = command("sh -c 'echo $$ > {pid}; exec sleep 60' {{program}}")
prepare(net(3), torch.zeros(1, 3, 16, 16), target).run()
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    while not pid.exists() or not pid.read_text().strip():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    _await_end(int(pid.read_text()))


def _await_end(pid: int) -> None:
    """Returns once a process is gone or a zombie, which its new parent may never ask for."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")


def test_a_program_that_the_node_lacks_is_named() -> None:
    session = prepare(net(3), EXAMPLE, command("no-such-program {program}"))
    with refuses("unavailable", "target 'board'", "command.run", "no-such-program") as error:
        session.run()
    assert error.type is UserError  # its device cannot return


def test_the_device_says_what_it_is(device: Device) -> None:
    assert identity(device.target()) == "board 1, firmware 1.0"
    for printed in ("", "one\ntwo\n", "\x1b[1mboard\n"):
        device.update(printed)
        with refuses("failed", "target 'board'", "command.version printed", "one"):
            identity(device.target())
    device.disappears()
    with refuses("failed", "target 'board'", "command.version ended with status 255", "no route"):
        identity(device.target())


def test_its_command_line_is_named_without_passwords() -> None:
    target = command("bench --at http://me:secret@board/ {program}")
    assert software(target) == "command bench --at http://***@board/ {program}"


def test_only_its_latency_is_measured(device: Device) -> None:
    assert set(unavailable(device.target())) == {"peak_memory_mb", "energy_mj"}
    device.breaks("echo 7")
    assert metered(net(3), device.target(), ["latency_ms"]) == {"latency_ms": 7.0}
    device.breaks("echo seven")
    with refuses("failed", "target 'board'", "printed 'seven'"):
        metered(net(3), device.target(), ["latency_ms"])


def test_predictions_are_made_here(device: Device) -> None:
    pytest.importorskip("onnxruntime")
    images = torch.randn(3, 3, 16, 16)
    session = prepare(net(3), EXAMPLE, device.target())
    device.disappears()
    torch.testing.assert_close(session.predict(images), net(3).eval()(images).detach(), atol=1e-4, rtol=1e-3)
