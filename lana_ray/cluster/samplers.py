"""A sampler as a Ray actor: a separate process on a node of the target, which reports its progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import ray

from lana_ray.cluster.agreement import Agreement, of_driver
from lana_ray.cluster.connection import nodes
from lana_ray.cluster.job import Job, Progress, Ready
from lana_ray.cluster.leases import Busy, Lease, lease
from lana_ray.cluster.placement import ask_autoscaler, assign_targets, nobody
from lana_ray.config import Config, Target
from lana_ray.costs.sampler import Sampler
from lana_ray.costs.samples import Sample
from lana_ray.costs.work import Work
from lana_ray.errors import UserError
from lana_ray.run_dir.storage import Storage

_WAIT_S = 5.0
"""How long a sampler waits for cores before it reports who holds them."""


class SamplerActor:
    """Measures students on a target's node; ``sampler_start`` makes it a Ray actor.

    Args:
        space: name of the students' space.
        agreement: the driver's code and run directory; samplers on nodes with other code are refused.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        target: Target,
        space: str,
        agreement: Agreement,
    ) -> None:
        self._config, self._num_classes, self._target = config, num_classes, target
        self._agreement, self._space = agreement, space
        self._lease: Lease | None = None

    @cached_property
    def _sampler(self) -> Sampler:
        """Built on first use: the driver gets only an ActorDiedError for an exception in the constructor."""
        from lana_ray.workspace import structural_students

        space = structural_students(self._config, self._num_classes, self._space)
        return Sampler(space, self._target, Storage(self._config.run.dir))

    def start(self) -> Ready | Busy:
        """Leases cores until the process ends, or returns ``Busy``; raises UserError on an unfit node."""
        self._agreement.check()
        if self._lease is None:
            name, owner = f"target {self._target.name!r}", self._config.run.dir
            leased = lease(self._target.threads, name, owner, wait_s=_WAIT_S)
            if isinstance(leased, Busy):
                return leased
            leased.pin()
            self._lease = leased
        return Ready(target_key=self._sampler.target_key(), node_id=ray.get_runtime_context().get_node_id())

    def sample(self, work: Sequence[Work], baselines_ms: Sequence[float]) -> Iterator[Progress]:
        """Measures one item after the other; measures the references first if there are no baselines."""
        if not baselines_ms:
            references = list(self._sampler.sample([], []))
            yield Progress(samples=tuple(references))
            baselines_ms = [sample.median_ms for sample in reversed(references)]
        done: tuple[Sample, ...] = ()
        for item in work:
            yield Progress(samples=done, begins=item.key)
            done = tuple(self._sampler.sample([item], baselines_ms))
        yield Progress(samples=done)


def sampler_start(config: Config, num_classes: int) -> Callable[[Job], Any]:
    """Returns the function that starts a sampler for a job, or returns None while no node serves its target.

    A sampler claims the target's label, one ``lana_device`` and the CPUs it measures on. The function raises
    UserError once no node has served the target for ``ray.label_wait_s``.
    """
    absent_since: dict[str, float] = {}
    agreement = of_driver(config.run.dir)

    def start(job: Job) -> Any:
        target, now, alive = job.target, time.monotonic(), nodes()
        if not job.placement.stand_in and all(node.target != target.node_label for node in alive):
            if target.name not in absent_since:
                ask_autoscaler([target])
            if now - absent_since.setdefault(target.name, now) >= config.ray.label_wait_s:
                raise UserError("no_node", nobody(target, alive))
            return None
        if absent_since.pop(target.name, None) is not None:
            ask_autoscaler([])
        placement = assign_targets([target], alive)[target.name]
        environment = {"env_vars": {"OMP_NUM_THREADS": str(target.threads)}}
        actor_class = ray.remote(SamplerActor).options(runtime_env=environment, **placement.options())
        return actor_class.remote(config, num_classes, target, job.space, agreement)

    return start
