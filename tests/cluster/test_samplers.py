"""Samplers that are hired, released and hired again, on a real cluster."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from lana_ray.cluster import leases
from lana_ray.cluster.connection import nodes
from lana_ray.cluster.job import Job, Ready
from lana_ray.cluster.leases import Busy
from lana_ray.cluster.placement import assign_targets
from lana_ray.cluster.samplers import Hired, Samplers
from lana_ray.config import Config

from ..runs import settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


def until(there: Callable[[], Any]) -> Any:
    end = time.monotonic() + 120
    while not (found := there()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def job(config: Config) -> Job:
    target = config.targets[1].model_copy(update={"input_shape": (3, 16, 16)})
    placement = assign_targets([target], nodes())[target.name]
    return Job(target=target, placement=placement, work=[], space="layers")


def started(hired: Hired) -> Any:
    actor = until(hired.actor)
    while isinstance(ready := ray.get(actor.start.remote()), Busy):
        pass  # other tests measure as well
    assert isinstance(ready, Ready)
    return actor


def measuring(folder: Path) -> bool:
    return any(str(folder) in holder for holder in leases.held())


def _pinned(_: Any) -> set[int]:
    return os.sched_getaffinity(0)


def free(resource: str) -> float:
    return float(ray.available_resources().get(resource, 0.0))


def test_a_released_sampler_frees_all_it_claims_and_is_given_to_the_next_job(tmp_path: Path) -> None:
    config = Config.model_validate(settings(tmp_path))
    samplers, asked = Samplers(config, 10), job(config)
    first = samplers.hire(asked, ())
    assert first is not None
    actor = started(first)
    assert not first.is_kept
    assert measuring(tmp_path)
    elsewhere = dataclasses.replace(asked.placement, resources={})  # as if there was another device
    other = samplers.hire(dataclasses.replace(asked, placement=elsewhere), ())
    assert other is not None
    assert started(other) is not actor
    until(lambda: free("lana_device") == 0)
    second = samplers.hire(asked, ())
    assert second is not None
    assert second.actor() is None  # the device is taken
    cpus = ray.get([each.__ray_call__.remote(_pinned) for each in (actor, other.actor())])
    assert cpus[0].isdisjoint(cpus[1])
    other.end()
    first.release()
    assert until(second.actor) is actor
    assert second.is_kept
    second.release()
    until(lambda: free("lana_device") == 1 and free("CPU") == 2)
    until(lambda: not measuring(tmp_path))
    ray.get(actor.__ray_ready__.remote())
    samplers.close()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.start.remote())


def test_an_ended_sampler_is_not_given_to_the_next_job(tmp_path: Path) -> None:
    config = Config.model_validate(settings(tmp_path))
    samplers, asked = Samplers(config, 10), job(config)
    first = samplers.hire(asked, ())
    assert first is not None
    actor = until(first.actor)
    first.end()
    second = samplers.hire(asked, ())
    assert second is not None
    assert until(second.actor) is not actor
    second.end()


def test_no_room_is_left_where_the_only_node_is_left_out(tmp_path: Path) -> None:
    config = Config.model_validate(settings(tmp_path))
    samplers, asked = Samplers(config, 10), job(config)
    (node,) = nodes()
    assert (samplers.room(asked, ()), samplers.room(asked, {node.id})) == (1, 0)
