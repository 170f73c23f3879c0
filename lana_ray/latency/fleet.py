"""Sampler actors on the nodes of the targets: the only Ray of this package."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from lana_ray.config import Config, Target
from lana_ray.errors import UserError
from lana_ray.latency.sampler import Sampler, Work
from lana_ray.latency.store import Sample, SampleStore
from lana_ray.placement import Placement
from lana_ray.progress import say
from lana_ray.storage import Storage

MAX_RESTARTS = 3
"""How often the sampler of one target may die before the run gives up on it."""
_FLUSH_S = 10.0


class SamplerActor:
    """A sampler in a process of its own, on a node of the target. Made a Ray actor below."""

    def __init__(self, config: Config, num_classes: int, target: Target) -> None:
        from lana_ray.workspace import structural_space

        space = structural_space(config, num_classes)
        self._sampler = Sampler(space, target, Storage(config.run.dir))

    def target_key(self) -> str:
        return self._sampler.target_key()

    def sample(self, work: Sequence[Work], baseline_ms: float | None) -> Iterator[Sample]:
        yield from self._sampler.sample(work, baseline_ms)


@dataclass
class Job:
    """What is to be measured on one target, and what came of it."""

    target: Target
    placement: Placement
    work: Sequence[Work]
    target_key: str = ""
    """Known from an earlier job of this run, or set by the first actor."""
    reused: int = 0
    samples: dict[str, Sample] = field(default_factory=dict)
    """By structure key; the reference under ``reference``."""

    def pending(self) -> list[Work]:
        """What has no sample yet."""
        return [work for work in self.work if work.key not in self.samples]

    def recall(self, store: SampleStore) -> None:
        """Takes what the store has for this very target."""
        wanted = {work.key for work in self.work}
        for sample in store.read(self.target_key):
            if sample.kind == "reference":
                self.samples.setdefault("reference", sample)  # the first stays the baseline of all drift
            elif sample.key in wanted:
                self.samples[sample.key] = sample
        self.reused = len(self.work) - len(self.pending())


@dataclass
class _Running:
    job: Job
    actor: Any
    store: SampleStore
    stream: Any = None
    block: list[Sample] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)
    restarts: int = 0


def run_jobs(
    jobs: Sequence[Job],
    config: Config,
    num_classes: int,
    store: SampleStore,
    on_sample: Callable[[int], None],
) -> None:
    """Measures what the store does not hold yet, on all targets at once, each through an actor of its own.

    The actor claims the target's label, one ``lana_device`` and the CPUs it measures on; targets that share
    a device wait for one another. Samples stream back and are stored in blocks; when an actor or its node
    dies it is restarted, and only what was in flight is measured again. No actor is started for a job whose
    ``target_key`` is known and whose samples are all there.

    Args:
        on_sample: called with the number of finished structures over all jobs, reused ones included.

    Raises:
        UserError: when a target's actor cannot start or keeps dying, naming the target.
    """
    for job in jobs:
        if job.target_key:
            job.recall(store)
    running = [
        _Running(job, _start(job, config, num_classes), store)
        for job in jobs
        if not job.target_key or job.pending()
    ]
    waiting = {run.actor.target_key.remote(): run for run in running}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(ready[0])
            try:
                if run.stream is None:
                    _begin(run, ray.get(ready[0]))
                else:
                    _keep(run, ray.get(next(run.stream)))
            except StopIteration:
                _flush(run)
                ray.kill(run.actor)  # frees the device for the next target
                continue
            except ray.exceptions.RayActorError as error:
                _restart(run, config, num_classes, error)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
            waiting[run.stream or run.actor.target_key.remote()] = run
            on_sample(sum(len(job.work) - len(job.pending()) for job in jobs))
    finally:
        for run in running:
            _flush(run)
            ray.kill(run.actor)


def _start(job: Job, config: Config, num_classes: int) -> Any:
    environment = {"OMP_NUM_THREADS": str(job.target.threads)}
    actor_class = ray.remote(SamplerActor).options(
        runtime_env={"env_vars": environment}, **job.placement.options()
    )
    return actor_class.remote(config, num_classes, job.target)


def _restart(run: _Running, config: Config, num_classes: int, error: Exception) -> None:
    _flush(run)
    run.restarts += 1
    name, reason = run.job.target.name, str(error).strip().split("\n")[0]
    if run.restarts > MAX_RESTARTS:
        raise UserError(f"target {name!r}: its sampler died {run.restarts} times ({reason})") from None
    say(f"target {name}: its sampler died; {len(run.job.pending())} structures go on in a new one")
    ray.kill(run.actor)
    run.actor, run.stream = _start(run.job, config, num_classes), None


def _begin(run: _Running, target_key: str) -> None:
    """Starts the stream of what the store does not have."""
    job = run.job
    job.target_key = target_key
    if not run.restarts:
        job.recall(run.store)
    reference = job.samples.get("reference")
    run.stream = run.actor.sample.remote(job.pending(), reference.median_ms if reference else None)


def _keep(run: _Running, sample: Sample) -> None:
    run.job.samples["reference" if sample.kind == "reference" else sample.key] = sample
    run.block.append(sample)
    if time.monotonic() - run.flushed >= _FLUSH_S:
        _flush(run)


def _flush(run: _Running) -> None:
    run.store.append(run.block)
    run.block = []
    run.flushed = time.monotonic()
