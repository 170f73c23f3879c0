"""The samplers of a run: processes on the targets' nodes, which stay from one stage to the next."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from lana_ray.cluster.agreement import Agreement, of_driver
from lana_ray.cluster.connection import Node, nodes
from lana_ray.cluster.job import Job, Progress, Ready
from lana_ray.cluster.leases import Busy, Lease, lease
from lana_ray.cluster.placement import Placement, ask_autoscaler, assign_targets, nobody
from lana_ray.config import Config, Target
from lana_ray.costs.sampler import Sampler
from lana_ray.costs.samples import Sample
from lana_ray.costs.work import Work
from lana_ray.errors import DeviceError, UserError
from lana_ray.run_dir.storage import Storage

_WAIT_S = 5.0
"""How long a sampler waits for cores, or a device, before it reports why."""
_NODE_ID = "ray.io/node-id"


class SamplerActor:
    """Measures students on a target's node; ``Samplers`` makes it a Ray actor.

    It leases cores while it measures for a job, and stays pinned to them in between, since the threads of
    its runtime are.

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
        """Leases cores until ``release``, or returns ``Busy``; raises UserError on an unfit node."""
        self._agreement.check()
        if self._lease is None:
            name, owner = f"target {self._target.name!r}", self._config.run.dir
            leased = lease(self._target.threads, name, owner, wait_s=_WAIT_S)
            if isinstance(leased, Busy):
                return leased
            leased.pin()
            self._lease = leased
        try:
            target_key = self._sampler.target_key()
        except DeviceError:
            # The driver may ask again until the device returns.
            time.sleep(_WAIT_S)
            raise
        return Ready(target_key=target_key, node_id=ray.get_runtime_context().get_node_id())

    def release(self) -> None:
        """Frees the cores and ends the process of the last session."""
        self._sampler.close()
        if self._lease is not None:
            self._lease.release()
            self._lease = None

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


class Samplers:
    """Hires samplers for jobs, see ``fleet.Samplers``. Released ones on CPUs keep what they have built.

    A sampler claims the target's label, one ``lana_device`` and the CPUs it measures on, only while it
    works for a job; then training may use them. One on a GPU would keep memory there, so it ends with its
    job.
    """

    def __init__(self, config: Config, num_classes: int) -> None:
        self._config, self._num_classes = config, num_classes
        self._absent_since: dict[str, float] = {}
        self._kept: dict[_Place, list[Any]] = defaultdict(list)

    @cached_property
    def _agreement(self) -> Agreement:
        return of_driver(self._config.run.dir)

    def room(self, job: Job, without: Collection[str]) -> int:
        placement = _placement(job, nodes(), without)
        return placement.actors if placement else 0

    def hire(self, job: Job, without: Collection[str]) -> Hired | None:
        """Reserves a place; raises UserError once no node has served the target for ``ray.label_wait_s``."""
        target, now, alive = job.target, time.monotonic(), nodes()
        placement = _placement(job, alive, without)
        if placement is None:
            if target.name not in self._absent_since:
                ask_autoscaler([target])
            if now - self._absent_since.setdefault(target.name, now) >= self._config.ray.label_wait_s:
                raise UserError("no_node", nobody(target, alive))
            return None
        if self._absent_since.pop(target.name, None) is not None:
            ask_autoscaler([])
        return Hired(self, job, placement, _reserve(placement, without))

    def take(self, place: _Place) -> Any:
        """A kept sampler of this place; None if there is none."""
        return self._kept[place].pop() if self._kept[place] else None

    def start(self, job: Job, node_id: str, placement: Placement, reservation: PlacementGroup) -> Any:
        """Starts a process on the node of a reservation."""
        claims: dict[str, Any] = {"num_cpus": 0}
        claims["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
        if placement.num_gpus:  # Ray shows a process only the GPUs that it claims
            claims["num_gpus"] = placement.num_gpus
            claims["scheduling_strategy"] = PlacementGroupSchedulingStrategy(reservation)
        environment = {"env_vars": {"OMP_NUM_THREADS": str(job.target.threads)}}
        actor_class = ray.remote(SamplerActor).options(runtime_env=environment, **claims)
        return actor_class.remote(self._config, self._num_classes, job.target, job.space, self._agreement)

    def keep(self, place: _Place, actor: Any) -> None:
        """Frees an actor's cores; ``take`` returns it later."""
        actor.release.remote()
        self._kept[place].append(actor)

    def close(self) -> None:
        """Ends all samplers that are kept."""
        for actors in self._kept.values():
            for actor in actors:
                ray.kill(actor)
        self._kept.clear()


@dataclass(frozen=True, slots=True)
class _Place:
    """What a kept sampler can be used for."""

    target: str
    space: str
    node_id: str


class Hired:
    """A sampler for one job, see ``fleet.Hired``: first a reservation, then an actor on the node it names."""

    def __init__(
        self, samplers: Samplers, job: Job, placement: Placement, reservation: PlacementGroup
    ) -> None:
        self._samplers, self._job, self._placement = samplers, job, placement
        self._reservation = reservation
        self._actor: Any = None
        self._place: _Place | None = None
        self.is_kept = False

    def actor(self) -> Any:
        if self._actor is None and self._reservation.wait(0):
            node_id = placement_group_table(self._reservation)["bundles_to_node_id"][0]
            self._place = _Place(self._job.target.name, self._job.space, node_id)
            self._actor = self._samplers.take(self._place)
            self.is_kept = self._actor is not None
            if self._actor is None:
                self._actor = self._samplers.start(self._job, node_id, self._placement, self._reservation)
        return self._actor

    def release(self) -> None:
        if self._actor is not None and self._place is not None and not self._placement.num_gpus:
            self._samplers.keep(self._place, self._actor)
            self._actor = None
        self.end()

    def end(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
        remove_placement_group(self._reservation)


def _placement(job: Job, alive: Sequence[Node], without: Collection[str]) -> Placement | None:
    """Where a job's samplers run now, except on some nodes; None if nothing serves its target."""
    if job.placement.stand_in:
        return None if without else job.placement
    serving = [node for node in alive if node.id not in without and node.target == job.target.node_label]
    return assign_targets([job.target], serving)[job.target.name] if serving else None


def _reserve(placement: Placement, without: Collection[str]) -> PlacementGroup:
    """Reserves what a sampler claims on one node, with no process, as soon as a node has room."""
    labels: Mapping[str, str] = placement.label_selector or {}
    others = {_NODE_ID: f"!in({','.join(sorted(without))})"} if without else {}
    return placement_group([placement.claim], bundle_label_selector=[{**labels, **others}])
