"""Runs that are told to end, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lana_ray.monitoring.signals import terminated_as_before

WAITS = """
import signal, sys, time

# What runs the tests in the background may have had them ignored, which is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import ray
from lana_ray import cli
from lana_ray.cluster import connection as cluster
from lana_ray.config import RayConfig

@cli.app.command()
def wait():
    with cluster.connect(RayConfig(address="local"), num_cpus=1):
        ray.get(ray.remote(lambda: None).remote())  # a worker that still starts would take minutes to give up
        task = ray.remote(lambda: time.sleep(600)).remote()
        print("waits", flush=True)
        ray.wait([task])

sys.argv = ["lana-ray", "wait"]
cli.main()
"""


def session(of: int) -> list[str]:
    """What runs in the session of a process, itself included, without zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(number) == of and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda x: x.name)
def test_a_signal_ends_a_run_and_all_that_it_started_in_one_line(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    assert len(session(process.pid)) > 1
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert error.startswith("lana-ray: ")
    assert error.count("\n") == 1
    assert number.name in error
    end = time.monotonic() + 60
    while session(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert session(process.pid) == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = """
        import signal
        from lana_ray.monitoring.signals import end_as_exceptions_do
        end_as_exceptions_do()
        print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, callable(signal.getsignal(signal.SIGTERM)))
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_handler_of_ones_own_is_given_back() -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        own = signal.getsignal(signal.SIGTERM)
        with terminated_as_before():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
