"""Samplers that a test starts itself, on the terms of ``cluster.samplers``."""

from collections.abc import Callable, Collection
from typing import Any

import ray

from lana_ray.cluster.job import Job


class Alone:
    """A sampler that nothing else needs a place for, as ``cluster.samplers.Hired``."""

    def __init__(self, actor: Any, is_kept: bool = False) -> None:
        self._actor, self.is_kept = actor, is_kept

    def actor(self) -> Any:
        return self._actor

    def release(self) -> None:
        self.end()

    def end(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)


class From:
    """Samplers from a function; nodes have room for as many as the job's placement says."""

    def __init__(self, start: Callable[[Job], Any]) -> None:
        self.started: list[Job] = []
        self._start = start

    def room(self, job: Job, without: Collection[str]) -> int:
        return 0 if without else job.placement.actors

    def hire(self, job: Job, without: Collection[str]) -> Alone | None:
        if (actor := self._start(job)) is None:
            return None
        self.started.append(job)
        return Alone(actor)
