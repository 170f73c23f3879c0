"""Runs the samplers of all targets: starts them, dispatches work, watches them, replaces those that die."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import ray.exceptions

from lana_ray.cluster.connection import nodes
from lana_ray.cluster.job import Job, Progress, Ready
from lana_ray.cluster.leases import Busy, Waiting
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.work import OtherStructure, Work
from lana_ray.errors import DeviceError, UserError, first_line, one_line
from lana_ray.monitoring.progress import say

MAX_FAILURES = 3
"""How many samplers may die while measuring one structure before it is left out of this run."""
MAX_DEATHS = 3
"""How many samplers of a target may die in a row without measuring anything, idle or because their node died,
before the run ends."""
_MAX_LEFT_OUT = 10
"""How many structures in a row may be left out before the run ends."""
_TICK_S = 1.0
_LOOK_S = 0.05
"""How often to look for a place for a sampler that waits for one."""
_ITEM_S = 1800.0
"""Time limit for building, compiling and measuring one structure."""
_START_S = 3600.0
"""Longest wait for a sampler to start while no other sampler answers."""
AWAY_S = 600.0
"""How long a device that does not answer any more is waited for."""
_SAY_EVERY_S = 60.0
_FLUSH_S = 10.0


class Hired(Protocol):
    """A sampler that a job was given, with what it claims of its node."""

    is_kept: bool
    """Whether it measured for an earlier job, and is pinned to the cores that it had then."""

    def actor(self) -> Any:
        """Its Ray actor, with the methods of ``SamplerActor``; None while no node has room for it."""

    def release(self) -> None:
        """Frees what it claims; a later job may be given the same sampler."""

    def end(self) -> None:
        """Frees what it claims and ends its process."""


class Samplers(Protocol):
    """Where samplers come from."""

    def room(self, job: Job, without: Collection[str]) -> int:
        """How many samplers of a job the present nodes have room for, except nodes with these ids."""

    def hire(self, job: Job, without: Collection[str]) -> Hired | None:
        """A sampler on any node except these; None while no node serves the job's target."""


def run_jobs(
    jobs: Sequence[Job], store: SampleStore, samplers: Samplers, on_sample: Callable[[Job], None]
) -> None:
    """Measures everything missing from the store, on all targets in parallel, each on all of its nodes.

    Targets that share a device wait for one another. Samples stream back and are stored in blocks. Samplers
    are hired as nodes come; on a node of another kind than the first sampler's none is hired again. If a
    sampler dies, or fails with anything but a runtime's refusal, another one is hired in its place, and the
    target's other samplers take over its work; it waits for a device that does not answer any more. A
    structure at which ``MAX_FAILURES`` samplers died, on nodes that are still alive, is left out of this run:
    it gets a sample with an error, which is not stored. No sampler is hired for a job whose ``target_key`` is
    set and whose samples are all stored.

    Args:
        on_sample: called with a job when more of it is done.

    Raises:
        UserError: a target's samplers cannot start, do not start in time or keep dying, or its nodes are not
            of one kind; names the target.
    """
    for job in jobs:
        if job.target_key:
            job.recall(store)
    fleets: list[_Fleet] = []
    fleets += [_Fleet(job, store, samplers, fleets) for job in jobs if not job.target_key or job.pending()]
    for fleet in fleets:
        fleet.fill()
    answered = ticked = time.monotonic()
    try:
        while any(not fleet.closed for fleet in fleets):
            searching = [fleet.place() for fleet in fleets]
            timeout = _LOOK_S if any(searching) else _TICK_S
            awaited = {w.awaited: (f, w) for f in fleets for w in f.workers if w.awaited is not None}
            ready = ray.wait(list(awaited), num_returns=1, timeout=timeout)[0] if awaited else []
            for answer in ready:
                fleet, worker = awaited[answer]
                fleet.receive(worker)
                on_sample(fleet.job)
                answered = time.monotonic()
            if not awaited:
                time.sleep(timeout)
            if time.monotonic() - ticked >= _TICK_S:
                for fleet in fleets:
                    fleet.tick(answered)
                ticked = time.monotonic()
    finally:
        for fleet in fleets:
            fleet.close()


@dataclass(eq=False)
class _Worker:
    """A sampler and the work dispatched to it."""

    hired: Hired
    awaited: Any = None
    """Reference to its next answer; None while it is idle or has no place."""
    share: list[Work] | None = None
    """Work dispatched to it; None until it is ready."""
    begun: str | None = None
    """Key of the work that it has last begun."""
    node_id: str = ""
    since: float = field(default_factory=time.monotonic)
    """When it last answered or was given work."""

    @property
    def busy(self) -> bool:
        return self.share is not None and self.awaited is not None


class _Fleet:
    """The samplers of one job."""

    def __init__(self, job: Job, store: SampleStore, samplers: Samplers, fleets: Sequence[_Fleet]) -> None:
        self.job = job
        self.closed = False
        self.workers: list[_Worker] = []
        self._store = store
        self._samplers = samplers
        self._fleets = fleets
        """Those of all jobs; the ones on the same nodes share them."""
        self._queue: deque[Work] | None = None
        """None until the first sampler reports the target's key."""
        self._block: list[Sample] = []
        self._flushed = time.monotonic()
        self._failures: dict[str, list[str]] = defaultdict(list)
        """Key of the work at which samplers died -> the nodes they ran on."""
        self._row: list[tuple[str, str | None]] = []
        """Node and work of each sampler that died since the last sample."""
        self._left_out = 0
        self._cores = Waiting(f"target {job.target.name!r}")
        self._away: Waiting | None = None
        """The wait for the target's device, if it has one that answers no more."""
        self._said = time.monotonic()
        self._odd: set[str] = set()
        """Ids of nodes that are of another kind than the target's first."""

    def place(self) -> bool:
        """Starts samplers that have found a place; whether some have none yet."""
        searching = [worker for worker in self.workers if worker.share is None and worker.awaited is None]
        for worker in searching:
            if (actor := worker.hired.actor()) is not None:
                worker.awaited, worker.since = actor.start.remote(), time.monotonic()
        return any(worker.awaited is None for worker in searching)

    def receive(self, worker: _Worker) -> None:
        """Handles the answer of a worker, which must have arrived."""
        worker.since = time.monotonic()
        try:
            if worker.share is None:
                self._on_start(worker, ray.get(worker.awaited))
            else:
                self._on_progress(worker, ray.get(next(worker.awaited)))
        except StopIteration:
            self._dispatch(worker)
        except ray.exceptions.RayTaskError as error:
            self._on_error(worker, error.cause)
        except ray.exceptions.RayActorError as error:
            self._on_end(worker, first_line(error))
        self._advance()

    def _on_error(self, worker: _Worker, cause: Exception) -> None:
        """Waits for a device that has answered before; raises errors of the settings; ends the sampler."""
        away = isinstance(cause, DeviceError) and "teacher" in self.job.references
        if away and worker.share is None:
            self._away = self._away or Waiting("its device is away")
            self._away.report(str(cause), AWAY_S)
            worker.awaited = worker.hired.actor().start.remote()
            return
        fatal = UserError if worker.share is None else (OtherStructure, DeviceError)
        if isinstance(cause, fatal) and not away:
            raise cause from None
        self._on_end(worker, f"{type(cause).__name__}: {one_line(cause)}")

    def tick(self, answered: float) -> None:
        """Ends slow samplers, starts missing ones, reports waits; ``answered``: time of the last answer."""
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.busy and now - worker.since > _ITEM_S:
                self._on_end(worker, f"no answer for {_ITEM_S / 60:.0f} minutes")
                self._advance()
        self.fill()
        if self.closed or any(worker.busy for worker in self.workers):
            self._said = now
            return
        since = max([answered, *(w.since for w in self.workers)])
        claim = ", ".join(f"{n:g} {what}" for what, n in self.job.placement.claim.items())
        wait = (
            f"target {self.job.target.name!r}: its sampler has not started for {now - since:.0f} s; it needs "
            f"{claim} on a node with label {self.job.target.node_label}"
        )
        if now - since >= _START_S:
            raise UserError(
                "busy", f"{wait}; free such a node (ray status shows who uses it) and rerun the same command"
            )
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            say(f"{wait}; waiting for at most {_START_S / 60:.0f} minutes")

    def close(self) -> None:
        """Stores the samples received so far and ends the samplers, which frees the devices."""
        self.closed = True
        self._flush()
        for worker in self.workers:
            if worker.awaited is None:
                worker.hired.release()
            else:
                worker.hired.end()
        self.workers = []

    def fill(self) -> None:
        """Hires missing samplers, as far as nodes serve the target."""
        while not self.closed and len(self.workers) < self._wanted():
            if (hired := self._samplers.hire(self.job, self._odd)) is None:
                return
            self.workers.append(_Worker(hired))

    def _wanted(self) -> int:
        """How many samplers have work and room."""
        room = self._samplers.room(self.job, self._odd)
        own = set(self.job.placement.nodes)
        sharing = sum(not f.closed and not own.isdisjoint(f.job.placement.nodes) for f in self._fleets)
        room = math.ceil(room / max(sharing, 1))
        if self._queue is None:
            return max(1, min(room, len(self.job.pending())))
        return min(room, len(self._queue) + sum(worker.busy for worker in self.workers))

    def _advance(self) -> None:
        """Continues with the job's next measurements once the queue is done; closes if there are none."""
        if self._queue or self._queue is None or any(worker.busy for worker in self.workers):
            return
        self._flush()
        if not self.job.go_on(self._store):
            self.close()
            return
        self._queue = deque(self.job.pending())
        self.fill()
        for worker in self.workers:
            # A sampler that has not started yet may never find a place.
            if worker.share is not None:
                self._dispatch(worker)

    def _on_start(self, worker: _Worker, answer: Ready | Busy) -> None:
        job = self.job
        if isinstance(answer, Busy):
            self._on_busy(worker, answer)
            return
        worker.node_id, self._away = answer.node_id, None
        if not job.target_key:
            job.target_key = answer.target_key
            job.recall(self._store)
        if answer.target_key != job.target_key:
            self._on_odd(worker)
            return
        if self._queue is None:
            self._queue = deque(job.pending())
        self._dispatch(worker)

    def _on_busy(self, worker: _Worker, answer: Busy) -> None:
        """Waits for cores; other cores than a kept sampler's may be free, so a new one looks for them."""
        if worker.hired.is_kept:
            self.workers.remove(worker)
            worker.hired.end()
            self.fill()
            return
        # While other samplers measure, this one may wait silently.
        if any(other.busy for other in self.workers):
            self._cores = Waiting(self._cores.what)
        else:
            self._cores.say(answer)
        worker.awaited = worker.hired.actor().start.remote()

    def _on_odd(self, worker: _Worker) -> None:
        """Lets a sampler go that is on a node of another kind than the target's first."""
        self._odd.add(worker.node_id)
        self.workers.remove(worker)
        worker.hired.end()
        name, others = self.job.target.name, self._samplers.room(self.job, self._odd)
        differs = f"target {name!r}: its nodes differ in processor or runtime version"
        if not self.workers and not others:
            advice = "give each kind of node a label and a target of its own"
            if self.job.target.command is not None:
                advice = "if its device was replaced or updated, rerun the same command to measure it anew"
            raise UserError("invalid_setting", f"{differs}; {advice}")
        say(f"{differs}; nothing is measured on node {worker.node_id}")
        self.fill()

    def _dispatch(self, worker: _Worker) -> None:
        """Dispatches the next share to a worker; shares shrink so that all workers end together.

        The first worker measures the references, whose latencies are the baseline of all drift; the others
        wait for it. A structure at which a sampler died is dispatched alone.
        """
        assert self._queue is not None
        worker.share, worker.awaited, worker.begun, worker.since = [], None, None, time.monotonic()
        references = self.job.references if "teacher" in self.job.references else {}
        if not references and any(other.busy for other in self.workers):
            return
        # More samplers come when another job on the same nodes ends.
        workers = max(len(self.workers), self._samplers.room(self.job, self._odd))
        count = len(self._queue) if workers == 1 else math.ceil(len(self._queue) / (2 * workers))
        if self._queue and self._queue[0].key in self._failures:
            count = 1
        if count or not references:
            worker.share = [self._queue.popleft() for _ in range(count)]
            baselines = [references[key].median_ms for key in ("teacher", "floor") if key in references]
            worker.awaited = worker.hired.actor().sample.remote(worker.share, baselines)

    def _on_progress(self, worker: _Worker, progress: Progress) -> None:
        worker.begun = progress.begins
        self._block += progress.samples
        if progress.samples:
            self._row, self._left_out = [], 0
        for sample in progress.samples:
            kept = self.job.references if sample.kind == "reference" else self.job.samples
            kept[sample.key] = sample
        if time.monotonic() - self._flushed >= _FLUSH_S:
            self._flush()
        if any(sample.kind == "reference" for sample in progress.samples):
            self._dispatch_idle()

    def _on_end(self, worker: _Worker, reason: str) -> None:
        """Ends a sampler that died or hangs, reassigns its work, and starts another one."""
        self._flush()
        self.workers.remove(worker)
        worker.hired.end()
        left = [work for work in worker.share or () if work.key not in self.job.samples]
        self._row.append((worker.node_id, worker.begun))
        say(
            f"target {self.job.target.name}: a sampler died ({reason}); "
            f"reassigning its {len(left)} unfinished measurements"
        )
        if left and left[0].key == worker.begun:
            self._failures[worker.begun].append(worker.node_id)
            self._leave_out(left, reason)
        if self._queue is not None:
            self._queue.extendleft(reversed(left))
        self._check_row(reason)
        self.fill()
        self._dispatch_idle()

    def _leave_out(self, left: list[Work], reason: str) -> None:
        """Removes the first structure of ``left`` if too many samplers died at it on nodes that survived."""
        alive = {node.id for node in nodes()}
        ends = sum(node_id in alive for node_id in self._failures[left[0].key])
        if ends >= MAX_FAILURES:
            item = left.pop(0)
            why = f"{ends} samplers died while measuring it, the last with {reason}"
            self.job.samples[item.key] = self.job.unknown(item, why)
            self._left_out += 1
            say(f"target {self.job.target.name}: {item.what} is left out of this run: {why}")

    def _check_row(self, reason: str) -> None:
        """Raises UserError if samplers keep dying and no structure is to blame."""
        alive = {node.id for node in nodes()}
        blameless = sum(begun is None or node_id not in alive for node_id, begun in self._row)
        if blameless > MAX_DEATHS or self._left_out > _MAX_LEFT_OUT:
            raise UserError(
                "failed",
                f"target {self.job.target.name!r}: its samplers died {len(self._row)} times in a row "
                f"({reason}); fix this and rerun the same command; finished work is kept",
            )

    def _dispatch_idle(self) -> None:
        for worker in self.workers:
            if worker.share is not None and worker.awaited is None:
                self._dispatch(worker)

    def _flush(self) -> None:
        self._store.append(self._block)
        self._block = []
        self._flushed = time.monotonic()
