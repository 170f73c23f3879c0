"""Stage 2: what every candidate costs on every target, as a table that adds up to whole networks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lana_ray.cluster.connection import nodes
from lana_ray.cluster.fleet import run_jobs
from lana_ray.cluster.job import Job
from lana_ray.cluster.placement import Placement, assign_targets
from lana_ray.cluster.samplers import sampler_start
from lana_ray.config import Target
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.table import CostTable, calibrate
from lana_ray.costs.timing import middle
from lana_ray.costs.work import Work, candidate_work, empty_work, in_sessions, network_work
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import progress_of, say
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import Architecture, Choices, StudentSpace
from lana_ray.workspace import Workspace

SLOW, FAILS = "slow", "fails"
"""Why a candidate is left out: it is slower than ``pool.max_cost`` allows, or fails, on every target."""
SESSIONS = range(3)
"""In which students are measured to be judged by a budget; later ones confirm what these found."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A target that was sampled."""

    target: Target
    placement: Placement
    target_key: str
    teacher_ms: float
    """The teacher's latency when this target was first sampled: the baseline of all drift."""
    space: str = LayerwiseSpace.name
    """Name of the students' space that was."""

    def job(self, work: Sequence[Work]) -> Job:
        """Further measurements on the same hardware."""
        return Job(
            target=self.target,
            placement=self.placement,
            work=work,
            space=self.space,
            target_key=self.target_key,
        )


@dataclass(frozen=True, kw_only=True)
class TargetCosts(Sampled):
    """Everything measured on one target so far, and the tables made of it."""

    candidates: tuple[tuple[Sample, ...], ...]
    """Per layer, each candidate alone."""
    isolated_ms: tuple[NDArray[np.float64], ...]
    considered: Choices
    """The candidates that are worth their time here, the teacher's layers first."""
    networks: dict[Architecture, Sample]
    sessions_ms: dict[Architecture, tuple[float, ...]] = field(default_factory=dict)
    """Of the networks among them that were measured in several sessions: each one's median."""
    tables: tuple[CostTable, ...]
    """The first as sampled; another each time that further networks were measured."""

    @property
    def table(self) -> CostTable:
        """The one that knows of all networks."""
        return self.tables[-1]

    def with_networks(self, more: Mapping[Architecture, Judged]) -> TargetCosts:
        """The same with further networks measured, and a table calibrated with all of them."""
        if not more:
            return self
        networks = {**self.networks, **{a: judged.sample for a, judged in more.items()}}
        return replace(
            self,
            networks=networks,
            sessions_ms={**self.sessions_ms, **{a: judged.sessions_ms for a, judged in more.items()}},
            tables=(*self.tables, _calibrate(self.isolated_ms, networks)),
        )


class Judged(NamedTuple):
    """A network measured in several sessions."""

    sample: Sample
    """The median session, or a failed one."""
    sessions_ms: tuple[float, ...]


def planned_candidates(space: LayerwiseSpace) -> list[Work]:
    """What is measured alone for a target's table; equal structures once."""
    work: dict[str, Work] = {}
    for layer, ops in enumerate(space.ops):
        for item in (empty_work(space, layer), *(candidate_work(space, layer, j) for j in range(len(ops)))):
            work.setdefault(item.key, item)
    return list(work.values())


def considered(costs: Mapping[str, TargetCosts]) -> Choices:
    """The candidates worth their time on some target: what is trained, scored and chosen from."""
    layers = zip(*(measured.considered for measured in costs.values()), strict=True)
    return tuple(tuple(sorted(set().union(*of_targets))) for of_targets in layers)


def placements(workspace: Workspace) -> dict[str, Placement]:
    """Where each target's sampler runs; says so where this machine stands in for one."""
    config = workspace.config
    found = assign_targets(config.targets, nodes(), wait_s=config.ray.label_wait_s, on_wait=say)
    stand_ins = [name for name, placement in found.items() if placement.stand_in]
    if stand_ins:
        say(f"no node is labelled; this machine stands in for {', '.join(stand_ins)}")
    return found


def run(workspace: Workspace) -> dict[str, TargetCosts]:
    """Samples every target and writes ``samples/*.parquet`` and ``costs/<target>.parquet``."""
    where, alone = placements(workspace), planned_candidates(workspace.space)
    jobs = [
        Job(
            target=target,
            placement=where[target.name],
            work=alone,
            space=workspace.space.name,
            follow=functools.partial(_planned_networks, workspace, target),
        )
        for target in workspace.targets
    ]
    measure(workspace, jobs, "sample", more={t.name: t.measure.architectures for t in workspace.targets})
    costs = {job.target.name: _costs(workspace, job) for job in jobs}
    write(workspace, costs)
    for name, known in costs.items():
        table = known.table
        say(
            f"sample: {name}: teacher {known.teacher_ms:.3f} ms; on networks left out the table errs by "
            f"{100 * table.error:.1f} % in the median (isolated costs: {100 * table.error_isolated:.1f} %)"
        )
    _say_left_out(left_out(costs))
    return costs


def left_out(costs: Mapping[str, TargetCosts]) -> dict[tuple[int, int], str]:
    """Why candidates go no further, by (layer, choice): ``FAILS`` on every target, or ``SLOW``.

    What is slow on some targets and fails on the others is ``SLOW``.
    """
    wanted, reasons = considered(costs), dict[tuple[int, int], str]()
    for layer, alone in enumerate(zip(*(measured.isolated_ms for measured in costs.values()), strict=True)):
        runs = np.isfinite(np.stack(alone)).any(axis=0).tolist()
        for choice in set(range(len(runs))).difference(wanted[layer]):
            reasons[layer, choice] = SLOW if runs[choice] else FAILS
    return reasons


def _say_left_out(reasons: Mapping[tuple[int, int], str]) -> None:
    counts = Counter(reasons.values())
    if counts[SLOW]:
        say(f"sample: left out {counts[SLOW]} candidates slower than pool.max_cost allows on every target")
    if counts[FAILS]:
        say(f"sample: left out {counts[FAILS]} candidates that run on no target; the report has the reasons")


def measure(
    workspace: Workspace, jobs: Sequence[Job], title: str, more: Mapping[str, int] | None = None
) -> None:
    """Runs sampling jobs with progress, and says what was reused, damaged or did not settle.

    Args:
        more: by target, how many structures will follow from what is measured first.
    """
    totals = {job.target.name: len(job.work) + (more or {}).get(job.target.name, 0) for job in jobs}
    store = SampleStore(workspace.storage)
    store.read()
    for damaged in store.damaged:
        say(f"left out: {damaged}")
    start = sampler_start(workspace.config, workspace.data.num_classes)
    with progress_of({f"{title} {name}": total for name, total in totals.items()}) as show:
        run_jobs(jobs, store, start, lambda job: show(f"{title} {job.target.name}", job.done))
    for job in jobs:
        if not job.work:
            continue  # the references alone were wanted
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
    asked: Mapping[str, Sequence[Architecture]],
    title: str,
) -> dict[str, dict[Architecture, float]]:
    """Measures networks on their targets; milliseconds of those that ran.

    Args:
        asked: by target.
    """
    work = {name: {a: network_work(space, a) for a in mine} for name, mine in asked.items()}
    jobs = {name: sampled[name].job(list(mine.values())) for name, mine in work.items()}
    measure(workspace, list(jobs.values()), title)
    return {name: ran(jobs[name], mine) for name, mine in work.items()}


def ran(job: Job, work: Mapping[Architecture, Work]) -> dict[Architecture, float]:
    """Milliseconds of the networks of a job that ran."""
    samples = {architecture: job.samples[item.key] for architecture, item in work.items()}
    return {a: sample.median_ms for a, sample in samples.items() if sample.error is None}


def judge(
    workspace: Workspace,
    asked: Mapping[str, Mapping[Architecture, Work]],
    costs: Mapping[str, Sampled],
    sessions: range,
    title: str,
) -> dict[tuple[str, Architecture], Judged]:
    """Measures networks that are judged by a budget, in several sessions each.

    Args:
        asked: by target.
    """
    jobs = {name: costs[name].job(in_sessions(list(work.values()), sessions)) for name, work in asked.items()}
    measure(workspace, list(jobs.values()), title)
    found = {}
    for name, work in asked.items():
        for architecture, item in work.items():
            taken = [jobs[name].samples[again.key] for again in in_sessions([item], sessions)]
            failed = next((sample for sample in taken if sample.error is not None), None)
            sessions_ms = tuple(sample.median_ms for sample in taken)
            found[name, architecture] = Judged(failed or middle(taken), sessions_ms)
    return found


def _isolated(
    space: LayerwiseSpace, target: Target, samples: Mapping[str, Sample]
) -> list[NDArray[np.float64]]:
    """What each candidate takes alone, per layer, shape [candidates]; infinite where it does not run."""
    isolated = []
    for layer, ops in enumerate(space.ops):
        empty = samples[empty_work(space, layer).key]
        taken = [samples[candidate_work(space, layer, choice).key] for choice in range(len(ops))]
        if taken[0].error is not None:
            raise UserError(
                f"target {target.name!r}: the teacher's layer {space.layers[layer].name} "
                f"does not run there: {taken[0].error}"
            )
        # Without it the calibration with whole networks has to find what a call costs.
        call_ms = empty.median_ms if empty.error is None else 0.0
        values = [s.median_ms - call_ms if s.error is None else np.inf for s in taken]
        isolated.append(np.maximum(np.asarray(values), 0.0))
    return isolated


def _say_failed_empties(space: LayerwiseSpace, target: Target, samples: Mapping[str, Sample]) -> None:
    """Says of which layers' candidates the costs include what a call costs by itself."""
    failed = {
        layer.name: samples[key].error
        for i, layer in enumerate(space.layers)
        if samples[key := empty_work(space, i).key].error is not None
    }
    if failed:
        say(
            f"sample: {target.name}: an empty program of the shape of {', '.join(failed)} does not run "
            f"({next(iter(failed.values()))}); its time is not subtracted from their candidates'"
        )


def worth(isolated: Sequence[NDArray[np.float64]], max_cost: float | None) -> Choices:
    """The candidates that run and take at most so much of their layer's time, and the layer itself."""
    most = np.inf if max_cost is None else max_cost
    return tuple(
        (0, *(int(j) for j in np.flatnonzero(np.isfinite(alone) & (alone <= most * alone[0])) if j))
        for alone in isolated
    )


def _networks(workspace: Workspace, target: Target, among: Choices) -> list[Architecture]:
    """The whole networks to measure, of candidates that are worth it, each once."""
    rng = np.random.default_rng(workspace.config.run.seed)
    return list(dict.fromkeys(workspace.space.balanced(target.measure.architectures, rng, among)))


def _planned_networks(workspace: Workspace, target: Target, samples: Mapping[str, Sample]) -> list[Work]:
    among = worth(_isolated(workspace.space, target, samples), workspace.config.pool.max_cost)
    return [network_work(workspace.space, a) for a in _networks(workspace, target, among)]


def _costs(workspace: Workspace, job: Job) -> TargetCosts:
    space, samples = workspace.space, job.samples
    reference = job.references["teacher"]
    isolated = _isolated(space, job.target, samples)
    _say_failed_empties(space, job.target, samples)
    among = worth(isolated, workspace.config.pool.max_cost)
    networks = _networks(workspace, job.target, among)
    measured = {a: samples[network_work(space, a).key] for a in networks}
    whole = {a: sample for a, sample in measured.items() if sample.error is None}
    if len(whole) < 2:
        reason = next((s.error for s in measured.values() if s.error), "too few networks")
        raise UserError(f"target {job.target.name!r}: no student runs there: {reason}")
    return TargetCosts(
        target=job.target,
        placement=job.placement,
        target_key=job.target_key,
        teacher_ms=reference.median_ms,
        candidates=tuple(
            tuple(samples[candidate_work(space, layer, choice).key] for choice in range(len(ops)))
            for layer, ops in enumerate(space.ops)
        ),
        isolated_ms=tuple(isolated),
        considered=among,
        networks={space.teacher: reference, **whole},
        tables=(_calibrate(isolated, {space.teacher: reference, **whole}),),
    )


def _calibrate(isolated: Sequence[NDArray[np.float64]], networks: Mapping[Architecture, Sample]) -> CostTable:
    return calibrate(isolated, list(networks), [sample.median_ms for sample in networks.values()])


def costs_file(target: str) -> str:
    """Where a target's cost tables are kept in the run directory."""
    return f"costs/{target}.parquet"


def write(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> None:
    """Writes ``costs/<target>.parquet``: every table of a target, told apart by ``calibration``.

    What a table predicts of a network is the sum of its candidates' ``latency_ms`` and ``rest_ms``, which is
    the same in all rows of the table.
    """
    wanted = considered(costs)
    for name, known in costs.items():
        rows = [
            row
            for number, table in enumerate(known.tables)
            for row in _rows(workspace.space, known, wanted, number, table)
        ]
        networks = [sample.key for sample in known.networks.values()]
        key = fingerprint(known.target_key, workspace.space.fingerprint, networks)
        whole = pa.Table.from_pylist(rows).replace_schema_metadata({"teacher_ms": str(known.teacher_ms)})
        workspace.storage.write_table(costs_file(name), whole, key)


def _rows(
    space: LayerwiseSpace, costs: TargetCosts, wanted: Choices, number: int, table: CostTable
) -> Iterator[dict[str, Any]]:
    for layer, ops in enumerate(space.ops):
        for choice, op in enumerate(ops):
            sample = costs.candidates[layer][choice]
            yield {
                "target": costs.target.name,
                "calibration": number,
                "layer": layer,
                "name": space.layers[layer].name,
                "choice": choice,
                "op": op.name,
                "latency_ms": float(table.costs_ms[layer][choice]),
                "rest_ms": table.rest_ms,
                "table_error": table.error,
                "table_error_isolated": table.error_isolated,
                "networks": table.networks,
                "isolated_ms": float(costs.isolated_ms[layer][choice]),
                "considered": choice in wanted[layer],
                "iqr_ms": sample.iqr_ms,
                "repeats": sample.repeats,
                "settled": sample.settled,
                "error": sample.error,
            }
