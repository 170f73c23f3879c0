"""Latencies on every target, measured by samplers on its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from lana_ray.cluster.connection import nodes
from lana_ray.cluster.fleet import run_jobs
from lana_ray.cluster.job import Job
from lana_ray.cluster.placement import Placement, assign_targets
from lana_ray.cluster.samplers import Samplers
from lana_ray.config import Target
from lana_ray.costs.samples import Sample
from lana_ray.costs.table import MeasuredCost
from lana_ray.costs.work import Work, in_sessions, network_work
from lana_ray.ids import QUANTILES, Architecture, CostId, latency_cost
from lana_ray.monitoring.progress import progress_of, say
from lana_ray.selection.choice import FIRST_SESSIONS
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace
from lana_ray.workspace import Workspace

LATENCY = latency_cost("p50")
SESSIONS = range(FIRST_SESSIONS)
"""Sessions of a student's first measurement against a budget; later sessions confirm the result."""
FINAL_SESSIONS = range(5)
"""Sessions of a student with its final weights."""
_CONFIRMING = 3
"""Sessions of a confirmation; more than at first, since an error would only be noticed after fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A sampled target."""

    target: Target
    placement: Placement
    target_key: str
    """Identity of its hardware, runtime and settings, and of the teacher's structure."""
    teacher: Sample
    """The teacher when this target was first sampled, the baseline of all drift."""
    floor: Sample | None
    """The second reference of drift, the teacher without its removable layers, if there is one."""
    space: str = LayerwiseSpace.name
    """Name of the sampled space of students."""

    @property
    def teacher_ms(self) -> float:
        return self.teacher.median_ms

    @property
    def latency(self) -> CostId:
        return CostId(LATENCY, self.target.name)

    def job(self, work: Sequence[Work]) -> Job:
        """A job with further measurements on the same hardware."""
        return Job(
            target=self.target,
            placement=self.placement,
            work=work,
            space=self.space,
            target_key=self.target_key,
        )


def placements(workspace: Workspace) -> dict[str, Placement]:
    """The placement of each target's sampler; says if this machine stands in for a target."""
    config = workspace.config
    placed = assign_targets(config.targets, nodes(), wait_s=config.ray.label_wait_s, on_wait=say)
    stand_ins = [name for name, placement in placed.items() if placement.stand_in]
    if stand_ins:
        say(f"no node carries the label; this machine stands in for {', '.join(stand_ins)}")
    return placed


_samplers: ContextVar[Samplers | None] = ContextVar("samplers", default=None)


@contextmanager
def samplers(workspace: Workspace) -> Iterator[Samplers]:
    """The samplers of a run; blocks inside the outermost one share them, and they end with that one."""
    if (outer := _samplers.get()) is not None:
        yield outer
        return
    own = Samplers(workspace.config, workspace.data.num_classes)
    token = _samplers.set(own)
    try:
        yield own
    finally:
        _samplers.reset(token)
        own.close()


def measure(
    workspace: Workspace, jobs: Sequence[Job], title: str, more: Mapping[str, int] | None = None
) -> None:
    """Runs sampling jobs and says what was reused, was damaged or did not settle.

    Args:
        more: number of structures by target that a job adds after its first measurements.
    """
    totals = {job.target.name: len(job.work) + (more or {}).get(job.target.name, 0) for job in jobs}
    for damaged in workspace.samples.update():
        say(f"left out: {damaged}")
    shown = {f"{title} {name}": total for name, total in totals.items()}
    with samplers(workspace) as kept, progress_of(shown) as show:
        run_jobs(jobs, workspace.samples, kept, lambda job: show(f"{title} {job.target.name}", job.done))
    for job in jobs:
        if not job.work:
            continue  # the job was started for its references alone
        samples = list(job.samples.values())
        failed = [sample for sample in samples if sample.error is not None]
        unsettled = sum(not sample.settled for sample in samples) - len(failed)
        notes = [f"{len(samples) - job.reused} measured", f"{job.reused} reused"]
        notes += [f"{unsettled} did not settle"] if unsettled else []
        notes += [f"{len(failed)} failed, {failed[0].what} with {failed[0].error}"] if failed else []
        say(f"{title}: {job.target.name}: {', '.join(notes)}")


def latencies(
    workspace: Workspace,
    space: StudentSpace,
    sampled: Mapping[str, Sampled],
    networks: Mapping[str, Sequence[Architecture]],
    title: str,
) -> dict[str, dict[Architecture, float]]:
    """Measures networks on their targets; returns the milliseconds of those that ran, by target."""
    work = {name: {a: network_work(space, a) for a in some} for name, some in networks.items()}
    jobs = {name: sampled[name].job(list(some.values())) for name, some in work.items()}
    measure(workspace, list(jobs.values()), title)
    return {name: ran(jobs[name], some) for name, some in work.items()}


def ran(job: Job, work: Mapping[Architecture, Work]) -> dict[Architecture, float]:
    """Milliseconds of those networks of a job that ran."""
    samples = {architecture: job.samples[item.key] for architecture, item in work.items()}
    return {a: sample.median_ms for a, sample in samples.items() if sample.error is None}


def measured(sessions: Sequence[Sample], quantile: str = QUANTILES[0]) -> MeasuredCost:
    """The median over the sessions of one network, or the reason why it failed in one."""
    for session in sessions:
        if session.error is not None:
            return MeasuredCost(value=session.median_ms, error=session.error)
    values = [session.at(quantile) for session in sessions]
    return MeasuredCost(
        value=float(np.median(values)),
        iqr=float(np.median([session.iqr_ms for session in sessions])),
        drift=float(np.median([session.drift for session in sessions])),
        sessions=tuple(values) if len(values) > 1 else (),
    )


def quantiles_of(workspace: Workspace) -> tuple[str, ...]:
    """The quantiles of latency that matter: the median, and those that have a budget."""
    asked = {budget.quantile for budget in workspace.config.budgets.latencies}
    return tuple(quantile for quantile in QUANTILES if quantile in {QUANTILES[0], *asked})


def sessions_of(attempt: int) -> range:
    """The sessions of a student's measurement; attempt 0 is the first, later ones confirm it."""
    if not attempt:
        return SESSIONS
    start = len(SESSIONS) + (attempt - 1) * _CONFIRMING
    return range(start, start + _CONFIRMING)


def in_many_sessions(
    workspace: Workspace,
    networks: Mapping[str, Mapping[Architecture, Work]],
    sampled: Mapping[str, Sampled],
    sessions: range,
    title: str,
) -> dict[tuple[str, Architecture], list[Sample]]:
    """Measures networks against budgets; returns the samples of all sessions by (target, architecture)."""
    jobs = {
        name: sampled[name].job(in_sessions(list(work.values()), sessions)) for name, work in networks.items()
    }
    measure(workspace, list(jobs.values()), title)
    return {
        (name, architecture): [jobs[name].samples[again.key] for again in in_sessions([item], sessions)]
        for name, work in networks.items()
        for architecture, item in work.items()
    }
