"""Sampler actors on the nodes of the targets: the only Ray of this package."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray
import ray.exceptions

from lana_ray.cluster import nodes
from lana_ray.config import Config, Target
from lana_ray.errors import UserError
from lana_ray.latency.leases import Busy, Lease, Waiting, lease
from lana_ray.latency.sampler import Sampler, Work
from lana_ray.latency.store import Sample, SampleStore
from lana_ray.placement import Placement, assign_targets
from lana_ray.progress import say
from lana_ray.storage import Storage

MAX_DEATHS = 3
"""How many samplers of one target may die in a row, without a sample in between, before it is given up."""
BLOCK_S = 0.3
"""Of measuring, before a sampler tells what it has found."""
_FLUSH_S = 10.0
_WAIT_S = 5.0
"""For cores, before a sampler tells who holds them."""


class SamplerActor:
    """A sampler in a process of its own, on a node of the target. Made a Ray actor below."""

    def __init__(self, config: Config, num_classes: int, target: Target, cells: bool = False) -> None:
        self._config, self._num_classes, self._target = config, num_classes, target
        self._cells = cells
        self._lease: Lease | None = None

    @cached_property
    def _sampler(self) -> Sampler:
        """Made by a call: of an actor that cannot be made, Ray does not say why as the error it is."""
        from lana_ray.workspace import structural_cells, structural_space

        space = (structural_cells if self._cells else structural_space)(self._config, self._num_classes)
        return Sampler(space, self._target, Storage(self._config.run.dir))

    def target_key(self) -> str | Busy:
        """The target's key, once this process has leased cores to measure on; until then, who holds them.

        The lease ends with the process.
        """
        if self._lease is None:
            name, owner = f"target {self._target.name!r}", self._config.run.dir
            leased = lease(self._target.threads, name, owner, wait_s=_WAIT_S)
            if isinstance(leased, Busy):
                return leased
            leased.pin()
            self._lease = leased
        return self._sampler.target_key()

    def sample(self, work: Sequence[Work], baselines_ms: Sequence[float]) -> Iterator[list[Sample]]:
        """What was measured since the last answer, as often as is worth a message."""
        yield from in_blocks(self._sampler.sample(work, baselines_ms), BLOCK_S)


def in_blocks(samples: Iterable[Sample], seconds: float) -> Iterator[list[Sample]]:
    """Samples as they come, those of ``seconds`` and what came last together."""
    block, begin = list[Sample](), time.monotonic()
    for sample in samples:
        block.append(sample)
        if time.monotonic() - begin >= seconds:
            yield block
            block, begin = [], time.monotonic()
    if block:
        yield block


@dataclass
class Job:
    """What is to be measured on one target, and what came of it."""

    target: Target
    placement: Placement
    work: Sequence[Work]
    follow: Callable[[Mapping[str, Sample]], Sequence[Work]] | None = None
    """Says, once all of ``work`` is done, what is to be measured in the light of it."""
    cells: bool = False
    """Whether the work is of the cell space of ``search.cells``; else of the teacher's layers."""
    target_key: str = ""
    """Known from an earlier job of this run, or set by the first actor."""
    reused: int = 0
    samples: dict[str, Sample] = field(default_factory=dict)
    """By the key of the work."""
    references: dict[str, Sample] = field(default_factory=dict)
    """``teacher``, and ``floor`` where there is one."""

    @property
    def done(self) -> int:
        """Pieces of work that have a sample."""
        return len(self.samples)

    def pending(self) -> list[Work]:
        """What has no sample yet."""
        return [work for work in self.work if work.key not in self.samples]

    def recall(self, store: SampleStore) -> None:
        """Takes what the store has for this very target."""
        wanted = {work.key for work in self.work}
        for sample in store.read(self.target_key):
            if sample.kind == "reference":
                if "teacher" not in self.references:  # the first stays the baseline of all drift
                    self.references[sample.key] = sample
            elif sample.key in wanted and sample.key not in self.samples:
                self.samples[sample.key] = sample
                self.reused += 1

    def go_on(self, store: SampleStore) -> bool:
        """Takes up what follows from the samples, once; whether there is anything left to measure."""
        if self.follow is not None:
            self.work, self.follow = [*self.work, *self.follow(self.samples)], None
            self.recall(store)
        return bool(self.pending())


Start = Callable[[Job], Any]
"""Makes an actor with the methods of ``SamplerActor`` for a job."""


def sampler_start(config: Config, num_classes: int) -> Start:
    """Samplers that claim the target's label, one ``lana_device`` and the CPUs they measure on.

    The function they are started with raises UserError when no node serves the target, or none any more.
    """

    def start(job: Job) -> Any:
        wait_s = config.ray.label_wait_s
        placement = assign_targets([job.target], nodes(), wait_s=wait_s, on_wait=say)[job.target.name]
        environment = {"env_vars": {"OMP_NUM_THREADS": str(job.target.threads)}}
        actor_class = ray.remote(SamplerActor).options(runtime_env=environment, **placement.options())
        return actor_class.remote(config, num_classes, job.target, job.cells)

    return start


def run_jobs(jobs: Sequence[Job], store: SampleStore, start: Start, on_sample: Callable[[Job], None]) -> None:
    """Measures what the store does not hold yet, on all targets at once, each on all of its nodes.

    Targets that share a device wait for one another. Samples stream back and are stored in blocks. When an
    actor or its node dies, the others of its target take over what it had in hand, and another is started in
    its place; a structure that two samplers died of is recorded as failed. No actor is started for a job
    whose ``target_key`` is known and whose samples are all there.

    Args:
        on_sample: called with a job when more of it is done.

    Raises:
        UserError: when a target's actors cannot start or keep dying, naming the target, or when its nodes are
            not of one kind.
    """
    for job in jobs:
        if job.target_key:
            job.recall(store)
    fleets = [_Fleet(job, store, start) for job in jobs if not job.target_key or job.pending()]
    try:
        while waiting := {w.awaited: (f, w) for f in fleets for w in f.workers if w.awaited is not None}:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            fleet, worker = waiting[ready[0]]
            fleet.receive(worker)
            on_sample(fleet.job)
    finally:
        for fleet in fleets:
            fleet.close()


@dataclass(eq=False)
class _Worker:
    """An actor and what it has in hand."""

    actor: Any
    awaited: Any
    """Its answer that comes next: the key of its target, then samples; None while it has nothing to do."""
    share: list[Work] | None = None
    """None until it has told its target."""

    @property
    def busy(self) -> bool:
        return self.share is not None and self.awaited is not None


class _Fleet:
    """The actors of one job."""

    def __init__(self, job: Job, store: SampleStore, start: Start) -> None:
        self.job = job
        self._store = store
        self._start = start
        self._queue: deque[Work] | None = None  # until the first actor tells which target it is
        self._block: list[Sample] = []
        self._flushed = time.monotonic()
        self._deaths = 0
        self._suspects: set[str] = set()
        self._waiting = Waiting(f"target {job.target.name!r}")
        self.workers: list[_Worker] = []
        count = min(job.placement.actors, len(job.pending()))
        for _ in range(max(1, count)):
            self._hire()

    def receive(self, worker: _Worker) -> None:
        """Takes the answer of a worker that is ready."""
        try:
            if worker.share is None:
                answer = ray.get(worker.awaited)
                if isinstance(answer, Busy):
                    self._wait(worker, answer)
                else:
                    self._greet(worker, answer)
            else:
                for sample in ray.get(next(worker.awaited)):
                    self._keep(sample)
        except StopIteration:
            self._feed(worker)
        except ray.exceptions.RayActorError as error:
            self._bury(worker, error)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        if not self._queue and self._queue is not None and not any(w.busy for w in self.workers):
            self._flush()
            if self.job.go_on(self._store):
                self._queue = deque(self.job.pending())
                for worker in self.workers:
                    if worker.share is not None:  # one that is yet to start may never find a place
                        self._feed(worker)
            else:
                self.close()

    def close(self) -> None:
        """Stores what came and frees the devices."""
        self._flush()
        for worker in self.workers:
            ray.kill(worker.actor)
        self.workers = []

    def _hire(self) -> None:
        actor = self._start(self.job)
        self.workers.append(_Worker(actor, actor.target_key.remote()))

    def _wait(self, worker: _Worker, busy: Busy) -> None:
        """Has a worker look for cores again; while others of this job measure, it may wait without a word."""
        if any(other.busy for other in self.workers):
            self._waiting = Waiting(self._waiting.what)
        else:
            self._waiting.say(busy)
        worker.awaited = worker.actor.target_key.remote()

    def _greet(self, worker: _Worker, target_key: str) -> None:
        job = self.job
        if not job.target_key:
            job.target_key = target_key
            job.recall(self._store)
        if target_key != job.target_key:
            raise UserError(
                f"target {job.target.name!r}: its nodes differ in processor or runtime version; give each "
                "kind a label and a target of its own"
            )
        if self._queue is None:
            self._queue = deque(job.pending())
        self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        """Gives a worker its next share, smaller and smaller ones, so that all end together.

        The first worker measures the references, whose latencies are the baseline of all drift; the others
        wait for it. What a sampler had in hand when it died is given out one by one.
        """
        assert self._queue is not None
        worker.share, worker.awaited = [], None
        known = self.job.references if "teacher" in self.job.references else {}
        if not known and any(other.busy for other in self.workers):
            return
        hands = len(self.workers)
        count = len(self._queue) if hands == 1 else math.ceil(len(self._queue) / (2 * hands))
        if self._queue and self._queue[0].key in self._suspects:
            count = 1
        if count or not known:
            worker.share = [self._queue.popleft() for _ in range(count)]
            baselines = [known[key].median_ms for key in ("teacher", "floor") if key in known]
            worker.awaited = worker.actor.sample.remote(worker.share, baselines)

    def _keep(self, sample: Sample) -> None:
        self._deaths = 0
        self._block.append(sample)
        if time.monotonic() - self._flushed >= _FLUSH_S:
            self._flush()
        if sample.kind != "reference":
            self.job.samples[sample.key] = sample
            return
        self.job.references[sample.key] = sample
        for worker in self.workers:
            if worker.awaited is None:
                self._feed(worker)

    def _bury(self, worker: _Worker, error: Exception) -> None:
        """Hands on what a dead worker left, and finds another."""
        job, name = self.job, self.job.target.name
        self._flush()
        self.workers.remove(worker)
        ray.kill(worker.actor)
        self._deaths += 1
        reason = str(error).strip().split("\n")[0]
        if self._deaths > MAX_DEATHS:
            raise UserError(f"target {name!r}: its samplers died {self._deaths} times in a row ({reason})")
        left = [work for work in worker.share or () if work.key not in job.samples]
        if len(left) == 1 and left[0].key in self._suspects and "teacher" in job.references:
            self._keep(_lost(left.pop(), job.references["teacher"]))
        self._suspects.update(work.key for work in left)
        if self._queue is not None:
            self._queue.extendleft(reversed(left))
        say(f"target {name}: a sampler died; what it had in hand ({len(left)} structures) goes to another")
        self._hire()
        for other in self.workers:
            if other.share is not None and other.awaited is None:
                self._feed(other)

    def _flush(self) -> None:
        self._store.append(self._block)
        self._block = []
        self._flushed = time.monotonic()


def _lost(work: Work, reference: Sample) -> Sample:
    """The record of a structure that samplers died of."""
    nan = float("nan")
    return dataclasses.replace(
        reference,
        kind=work.kind,
        key=work.key,
        what=work.what,
        median_ms=nan,
        iqr_ms=nan,
        raw_ms=nan,
        drift=nan,
        repeats=0,
        seconds=0.0,
        settled=False,
        error="two samplers died while measuring it",
        time=time.time(),
    )
