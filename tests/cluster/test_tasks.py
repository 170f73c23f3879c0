"""Tasks of a run on the nodes that train, and calls on the nodes of targets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lana_ray.cluster.claims import GIB
from lana_ray.cluster.tasks import run_on_targets, run_tasks
from lana_ray.config import Config, Target, load_config

from ..errors import refuses
from ..runs import printed, settings


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(settings(tmp_path))


def test_results_errors_and_deaths_come_back_by_position(config: Config, ray_cluster: None) -> None:
    def function(number: int) -> int:
        if number == 1:
            raise ValueError("not\nthis one")
        if number == 2:
            os._exit(1)
        return 10 * number

    target = Target(name="edge")
    found = {
        k: (value, error)
        for k, value, error in run_on_targets(function, [(target, (n,)) for n in range(4)], config)
    }
    assert (found[0], found[3]) == ((0, None), (30, None))
    assert found[1] == (None, "ValueError: not this one")
    value, error = found[2]
    assert value is None
    assert error is not None
    assert error.startswith("WorkerCrashedError")


def test_calls_of_a_device_are_made_one_at_a_time(config: Config, ray_cluster: None, tmp_path: Path) -> None:
    def function(folder: str, number: int) -> int:
        import time
        from pathlib import Path

        mine = Path(folder) / str(number)
        mine.touch()
        time.sleep(0.2)
        together = len(list(Path(folder).iterdir()))
        mine.unlink()
        return together

    folder = tmp_path / "now"
    folder.mkdir()
    asked = [(Target(name=name), (str(folder), n)) for n, name in enumerate(("edge", "phone") * 2)]
    assert {value for _, value, _ in run_on_targets(function, asked, config)} == {1}


def test_a_target_that_no_node_serves_is_refused(config: Config, ray_cluster: None) -> None:
    with refuses("no_node", "target 'big'", "threads 512"):
        list(run_on_targets(abs, [(Target(name="big", threads=512), (1,))], config))


# Tasks of a run


def test_results_are_in_order_and_tasks_share_the_cpus(config: Config, ray_cluster: None) -> None:
    def claimed(workspace: Any, number: int) -> tuple[int, float]:
        import ray

        return number, ray.get_runtime_context().get_assigned_resources()["CPU"]

    assert run_tasks(claimed, [(3,), (1,), (2,)], config, title="t") == [(3, 1), (1, 1), (2, 1)]
    assert run_tasks(claimed, [(3,)], config, title="t") == [(3, 2)]
    assert run_tasks(claimed, [], config, title="t") == []


def test_a_task_claims_memory(config: Config, ray_cluster: None) -> None:
    def claimed(workspace: Any) -> float:
        import ray

        return float(ray.get_runtime_context().get_assigned_resources()["memory"])

    assert run_tasks(claimed, [()], config, title="t") == [GIB]
    assert run_tasks(claimed, [()], config, title="t", memory=GIB // 2) == [GIB // 2]


def test_a_task_that_no_node_holds_is_refused(tmp_path: Path, ray_cluster: None) -> None:
    config = load_config(settings(tmp_path, ray={"gpus_per_worker": 1}))
    with refuses("no_node", "ray.gpus_per_worker 1"):
        run_tasks(lambda workspace: None, [()], config, title="t")


def test_a_process_that_had_a_gpu_is_not_used_again(tmp_path: Path) -> None:
    """It would keep memory on its GPU, and be given another GPU than it is bound to."""
    script = """
        import os, sys
        import ray
        from lana_ray.config import load_config
        from lana_ray.cluster.tasks import run_tasks
        from tests.runs import settings

        ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        for gpus in (1, 0):
            config = load_config(settings(sys.argv[1], ray={"gpus_per_worker": gpus, "cpus_per_worker": 2}))
            found = run_tasks(lambda workspace, k: os.getpid(), [(k,) for k in range(3)], config, title="t")
            print("processes", gpus, len(set(found)))
    """
    said = printed(script, tmp_path, RAY_AUTH_MODE="disabled")
    assert "processes 1 3" in said
    assert "processes 0 1" in said


def test_a_task_killed_for_its_memory_is_not_tried_for_ever(tmp_path: Path) -> None:
    """On this machine of the test every task is too large, as Ray is to keep all but nothing free."""
    script = """
        import sys, time
        from lana_ray.cluster.connection import connect
        from lana_ray.config import load_config
        from lana_ray.errors import UserError
        from lana_ray.cluster.tasks import run_tasks
        from tests.runs import settings

        config = load_config(settings(sys.argv[1], ray={"address": "local"}))
        with connect(config.ray, num_cpus=1):
            try:
                run_tasks(lambda workspace: time.sleep(60), [()], config, title="score")
            except UserError as error:
                print(error.code, error)
    """
    environment = {"RAY_memory_usage_threshold": "0.01", "RAY_task_oom_retry_delay_base_ms": "10"}
    (said,) = [line for line in printed(script, tmp_path, **environment) if line.startswith("failed score:")]
    assert "ran out of memory" in said
    assert "ray.cpus_per_worker" in said
