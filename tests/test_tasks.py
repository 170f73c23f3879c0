"""Calls on the nodes of targets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lana_ray.config import Config, Target, load_config
from lana_ray.errors import UserError
from lana_ray.tasks import run_on_targets

from .runs import settings


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
    with pytest.raises(UserError, match="target 'big': threads 512"):
        list(run_on_targets(abs, [(Target(name="big", threads=512), (1,))], config))
