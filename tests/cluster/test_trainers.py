"""Ray Train jobs that cannot start, or of which one group fails: they end and give back what they hold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import train
from ray.train import WorkerGroupError

from lana_ray.cluster import trainers as driver
from lana_ray.cluster.claims import Claim
from lana_ray.cluster.groups import WorkerGroup
from lana_ray.cluster.trainers import Training, run_training
from lana_ray.config import Config, load_config
from lana_ray.errors import UserError

from ..errors import refuses
from ..runs import settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(settings(tmp_path))


def _run(config: Config, worker: Any, groups: list[WorkerGroup], **setting: Any) -> None:
    run_training(Training(title="try", worker=worker, setting=setting, groups=groups, total=1), config)


def _all_is_given_back(seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    return ray.available_resources().get("CPU", 0) == 2


def _threads(setting: dict[str, Any]) -> None:
    import torch

    folder = Path(setting["folder"])
    threads = setting["config"].ray.cpus_per_worker, torch.get_num_threads()
    (folder / str(train.get_context().get_world_rank())).write_text(repr(threads))
    train.report({})


def test_a_worker_uses_the_cpus_it_claims_but_no_more_than_there_are(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    here = len(os.sched_getaffinity(0))
    groups = [WorkerGroup(name="two", claim=Claim(cpus=2))]
    _run(config, _threads, groups, folder=str(tmp_path))
    assert (tmp_path / "0").read_text() == repr((min(2, here), min(2, here)))


def _fails_or_sleeps(setting: dict[str, Any]) -> None:
    name, _ = setting["group"]
    if name == "failing":
        raise UserError("invalid_data", "this is the user's")
    time.sleep(3600)


def test_a_group_that_fails_ends_the_others(config: Config) -> None:
    groups = [WorkerGroup(name=name, claim=Claim(cpus=1)) for name in ("sleeping", "failing")]
    with refuses("invalid_data", "this is the user's"):
        _run(config, _fails_or_sleeps, groups)
    assert _all_is_given_back()


def _dies_until_done(setting: dict[str, Any]) -> None:
    """Does a part of its work each time it is started, as far as ``parts`` says, and is then killed."""
    import os
    import signal

    starts = Path(setting["folder"]) / "starts"
    count = len(starts.read_text()) if starts.exists() else 0
    starts.write_text("x" * (count + 1))
    name, board = f"{setting['group'][0]} network", setting["board"]
    ray.get(board.begin.remote(name))
    ray.get(board.add.remote(min(count + 1, setting["parts"]), name))
    if count < setting["deaths"]:
        os.kill(os.getpid(), signal.SIGKILL)
    train.report({})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> int:
    """One failure in a row is forgiven."""
    monkeypatch.setattr(driver, "MAX_FAILURES", 1)
    return 1


@pytest.mark.slow
def test_a_group_starts_again_as_long_as_it_gets_further(
    config: Config, tmp_path: Path, impatient: int
) -> None:
    deaths = impatient + 1
    groups = [WorkerGroup(name="one", claim=Claim(cpus=1))]
    _run(config, _dies_until_done, groups, folder=str(tmp_path), parts=deaths + 1, deaths=deaths)
    assert len((tmp_path / "starts").read_text()) == deaths + 1


@pytest.mark.slow
def test_a_group_that_gets_no_further_ends(config: Config, tmp_path: Path, impatient: int) -> None:
    groups = [WorkerGroup(name="one", claim=Claim(cpus=1))]
    with refuses("failed", "try: ", f"{impatient + 1} times"):
        _run(config, _dies_until_done, groups, folder=str(tmp_path), parts=2, deaths=99)
    # The second start got further than the first; the failures after it were too many.
    assert len((tmp_path / "starts").read_text()) == 2 + impatient


def test_a_group_that_no_node_holds_is_refused_before_anything_starts(config: Config) -> None:
    wide = WorkerGroup(name="wide", claim=Claim(cpus=512))
    with refuses("no_node", "ray.cpus_per_worker", "512 CPUs"):
        _run(config, _fails_or_sleeps, [wide])
    many = WorkerGroup(name="many", fewest=3, most=4, claim=Claim(cpus=1))
    with refuses("no_node", "ray.min_workers 3"):
        _run(config, _fails_or_sleeps, [many])


def test_what_is_missing_is_said_and_the_wait_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another on the cluster holds its CPUs, and does not give them back."""
    monkeypatch.setattr(driver, "_SAY_S", 2.0)
    monkeypatch.setattr(driver, "_END_S", 8.0)

    class Other:
        def ready(self) -> bool:
            return True

    other = ray.remote(Other).options(num_cpus=1).remote()
    assert ray.get(other.ready.remote())
    with refuses("busy", "try: no worker for", "1 CPUs and 0 GPUs"):
        _run(config, _fails_or_sleeps, [WorkerGroup(name="worker", claim=Claim(cpus=2))])
    assert "try: no worker for" in capsys.readouterr().out
    ray.kill(other)
    assert _all_is_given_back()


def _takes_a_while(setting: dict[str, Any]) -> None:
    time.sleep(8)
    train.report({})


def test_a_group_that_finds_no_room_next_to_another_is_told_of_and_not_waited_for(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "_SAY_S", 2.0)
    groups = [WorkerGroup(name="first", claim=Claim(cpus=1)), WorkerGroup(name="wide", claim=Claim(cpus=2))]
    _run(config, _takes_a_while, groups)
    said = capsys.readouterr().out
    assert "try: no wide for" in said
    assert "try: no first for" not in said
    assert _all_is_given_back()


def _is_wrong(setting: dict[str, Any]) -> None:
    raise KeyError("a bug")


@pytest.mark.slow
def test_what_a_worker_raises_keeps_its_traceback(config: Config) -> None:
    with pytest.raises(WorkerGroupError, match=r"in _is_wrong\n.*\n.*KeyError: 'a bug'"):
        _run(config, _is_wrong, [WorkerGroup(name="one", claim=Claim(cpus=1))])
