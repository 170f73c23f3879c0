"""``clusters/onprem.yaml`` on hosts of its own: a job outlives one, and nothing outlives ``ray down``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lana_ray.config import load_config
from lana_ray.costs.samples import SampleStore
from lana_ray.run_dir.storage import Storage
from tests import hosts
from tests.hosts import ROOT, Host
from tests.runs import settings, summary_of

DASHBOARD = "http://127.0.0.1:8265"
LIMIT_S = 900
"""For whatever is waited for; several times as long as it takes on a quiet machine."""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[list[Host]]:
    """The user's own machine, the head and two workers."""
    if lack := hosts.missing():
        pytest.skip(lack)
    with hosts.network(tmp_path, ["laptop", "head", "alpha", "beta"]) as machines:
        yield machines


def test_the_settings_of_the_job_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no hosts can be made, too: the job runs in a copy of the checkout's root."""
    monkeypatch.chdir(ROOT)
    config = load_config("jobs/quickstart.yaml", tuple(_settings(tmp_path)))
    assert config.run.dir == str(tmp_path)
    assert config.teacher.factory == f"{ROOT}/tests/small_networks.py:net"


@pytest.mark.slow
@pytest.mark.onprem
def test_a_job_outlives_a_worker_and_nothing_outlives_ray_down(network: list[Host], tmp_path: Path) -> None:
    laptop, head, alpha, beta = network
    run_dir = tmp_path / "run"
    for worker in (alpha, beta):
        (worker.home / "lana.env").write_text(
            "LANA_LABELS=lana.target=edge\nLANA_RESOURCES='{\"lana_device\": 1}'\n"
        )
    checkout = _checkout(laptop, tmp_path / "key", head, [alpha, beta])

    def run(*command: str, **variables: str) -> str:
        """On the user's own machine, in the checkout."""
        print("$", *command)
        done = subprocess.run(
            laptop.command(command, checkout, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout)
        assert done.returncode == 0, command
        return done.stdout

    run("bash", "-c", "ray get-auth-token --generate > /dev/null")
    run("ray", "up", "-y", "clusters/onprem.yaml", RAY_UP_enable_autoscaler_v2="0")
    with _in_background(laptop, tmp_path / "dashboard.log", "ray", "dashboard", "clusters/onprem.yaml"):
        _until(lambda: len(_nodes(laptop)) == 3, "both workers join")
        labels = {node["node_ip"]: node["labels"].get("lana.target") for node in _nodes(laptop)}
        print(labels)
        assert labels == {head.address: None, alpha.address: "edge", beta.address: "edge"}

        submit = ["ray", "job", "submit", "--address", DASHBOARD, "--working-dir", ".", "--"]
        changes = [word for setting in _settings(run_dir) for word in ("--set", setting)]
        command = [*submit, "python", "jobs/accelerate.py", "jobs/quickstart.yaml", *changes]
        log = tmp_path / "job.log"
        with _in_background(laptop, log, *command, RAY_AUTH_MODE="token") as job:
            _until(lambda: beta.name in _measured_by(run_dir), f"{beta.name} measures", job)
            beta.cut_power()
            print(f"{beta.name} is gone")
            job.wait(timeout=LIMIT_S)
        assert job.returncode == 0
        assert "sampler died" in log.read_text()
        dead = {"node_ip": beta.address, "state": "DEAD"}
        _until(
            lambda: any(dead.items() <= node.items() for node in _nodes(laptop)),
            f"{beta.name} counts as dead",
        )

    (result,) = summary_of(run_dir)["results"]
    listed = run("python", "-m", "lana_ray.cli", "models", "--registry", str(run_dir))
    assert result["model_uri"] in listed
    assert "champion" in listed

    assert head.processes()
    assert alpha.processes()
    run("ray", "down", "-y", "clusters/onprem.yaml")
    begin = time.monotonic()
    try:
        _until(lambda: not head.processes() + alpha.processes(), "nothing runs any more")
    finally:
        print("left:", head.processes(), alpha.processes())
    print(f"nothing runs any more, {time.monotonic() - begin:.0f} s after ray down")


def _checkout(laptop: Host, key: Path, head: Host, workers: list[Host]) -> Path:
    """A copy of the checkout, with these hosts in its cluster's file; they have this virtual environment."""
    checkout = laptop.home / "lana_ray"
    for name in ("clusters", "jobs", "lana_ray", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    file = checkout / "clusters" / "onprem.yaml"
    config = yaml.safe_load(file.read_text())
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    config["setup_commands"] = [line for line in config["setup_commands"] if "pip install" not in line]
    file.write_text(yaml.safe_dump(config))
    for host in (head, *workers):
        (host.home / "lana-venv").symlink_to(sys.prefix)
    return checkout


def _settings(run_dir: Path) -> list[str]:
    """What the job changes of the quickstart: a small network, measured for half a minute on two hosts."""
    target = {"name": "edge", "runtime": "torch", "measure": {"architectures": 16, "time_limit_s": 1.5}}
    teacher = {"factory": "tests/small_networks.py:net"}  # relative to the job's working directory
    budgets = {"latency_ms": ["500ms"]}
    changed = settings(run_dir, teacher=teacher, targets=[target], budgets=budgets)
    return [f"{key}={json.dumps(value)}" for key, value in changed.items()]


def _nodes(laptop: Host) -> list[Any]:
    """The cluster's nodes as Ray lists them; none while nobody answers."""
    asked = ["ray", "list", "nodes", "--address", DASHBOARD, "--format", "json", "--detail"]
    answer = subprocess.run(laptop.command(asked, RAY_AUTH_MODE="token"), capture_output=True, text=True)
    return list(json.loads(answer.stdout)) if answer.returncode == 0 else []


def _measured_by(run_dir: Path) -> set[str]:
    """The hosts that measured what the run has stored so far."""
    return {sample.node for sample in SampleStore(Storage(str(run_dir))).read()}


@contextmanager
def _in_background(
    host: Host, log: Path, *command: str, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in the checkout, ends it where it has not ended by itself, and shows what it said."""
    print("$", *command)
    variables["PYTHONUNBUFFERED"] = "1"
    with log.open("w") as file:
        inside = host.command(command, host.home / "lana_ray", **variables)
        process = subprocess.Popen(inside, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        print(log.read_text())


def _until(holds: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Waits until something holds, for no longer than the process runs that brings it about."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert process is None or process.poll() is None, f"ended before {what}"
        assert time.monotonic() < end, f"{what}: not within {LIMIT_S} s"
        time.sleep(1)
