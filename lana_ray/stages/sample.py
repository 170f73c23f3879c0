"""Stage 2: measures every candidate on every target and fits additive cost tables."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lana_ray.cluster.job import Job
from lana_ray.config import Target
from lana_ray.costs.registry import COUNTED
from lana_ray.costs.samples import Sample
from lana_ray.costs.table import CostTable, CostTables, MeasuredCost, first_costs, proportional_costs
from lana_ray.costs.work import Work, candidate_work, empty_work, network_work
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.errors import UserError
from lana_ray.ids import Architecture, CandidateId, Choices, CostId, latency_cost
from lana_ray.measurement.counts import exact_costs
from lana_ray.measurement.latencies import Sampled, measure, measured, placements, quantiles_of
from lana_ray.measurement.readings import readings
from lana_ray.monitoring.progress import say
from lana_ray.preflight.planned import Planned
from lana_ray.redact import without_passwords
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.tables import COSTS, CostRow
from lana_ray.selection.loop import Tables
from lana_ray.spaces.design import balanced
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.offers import offers
from lana_ray.workspace import Workspace

SLOW, FAILS = "slow", "fails"
"""Why a candidate is left out: on every target, it is slower than ``pool.max_cost`` allows, or fails."""


@dataclass(frozen=True, kw_only=True)
class SampledCandidates(Sampled):
    """A target on which all candidates were measured."""

    candidates: tuple[tuple[Sample, ...], ...]
    """Samples of each candidate alone, by layer."""
    considered: Choices
    """The candidates worth training for this target, the teacher's own layers first."""
    drawn: tuple[Architecture, ...]
    """The teacher and the networks of the design that ran; the table may rest on further stored ones."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The results of this stage."""

    targets: dict[str, SampledCandidates]
    tables: Tables
    """Tables of latency on every target, and of every cost that has a budget."""

    @property
    def considered(self) -> Choices:
        """The candidates worth training for some target."""
        layers = zip(*(sampled.considered for sampled in self.targets.values()), strict=True)
        return tuple(tuple(sorted(set().union(*of_targets))) for of_targets in layers)


def run(workspace: Workspace, costs: Sequence[str]) -> Sampling:
    """Writes ``samples/*.parquet`` and ``costs/<target>.parquet``: tables of latency and of ``costs``."""
    for line in offers(workspace.space):
        say(f"pool: {line}")
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
    targets = {job.target.name: _sampled(workspace, job) for job in jobs}
    latency = {
        CostId(latency_cost(quantile), job.target.name): _latency_tables(
            workspace, job, targets[job.target.name], quantile
        )
        for job in jobs
        for quantile in quantiles_of(workspace)
    }
    sampling = Sampling(targets=targets, tables=latency)
    sampling = Sampling(targets=targets, tables={**latency, **_other_tables(workspace, costs, sampling)})
    write(workspace, sampling, sampling.tables)
    _say_errors(sampling)
    _say_left_out(left_out(workspace.space, sampling))
    return sampling


def planned_candidates(space: LayerwiseSpace) -> list[Work]:
    """The work to measure candidates and empty programs alone; equal structures are measured once."""
    work: dict[str, Work] = {}
    for layer, ops in enumerate(space.ops):
        for item in (empty_work(space, layer), *(candidate_work(space, layer, j) for j in range(len(ops)))):
            work.setdefault(item.key, item)
    return list(work.values())


def left_out(space: LayerwiseSpace, sampling: Sampling) -> dict[CandidateId, str]:
    """Candidates to drop, with the reason: ``FAILS`` if they fail on every target, else ``SLOW``."""
    reasons: dict[CandidateId, str] = {}
    isolated = [sampling.tables[sampled.latency].isolated for sampled in sampling.targets.values()]
    for layer, ids in enumerate(space.ids):
        alone = np.stack([of_target[layer] for of_target in isolated])
        runs = np.atleast_1d(np.isfinite(alone).any(axis=0))
        for choice in set(range(len(ids))).difference(sampling.considered[layer]):
            reasons[ids[choice]] = SLOW if runs[choice] else FAILS
    return reasons


def worth(isolated: Sequence[NDArray[np.float64]], max_cost: float | None) -> Choices:
    """The layers themselves, and the candidates that take at most ``max_cost`` times their layer's time."""
    most = np.inf if max_cost is None else max_cost
    return tuple(
        (0, *(int(j) for j in np.flatnonzero(np.isfinite(alone) & (alone <= most * alone[0])) if j))
        for alone in isolated
    )


def write(workspace: Workspace, sampling: Sampling, tables: Tables) -> None:
    """Writes all tables of every target to ``costs/<target>.parquet``, see ``CostRow``."""
    for name, sampled in sampling.targets.items():
        of_target = [costs for of, costs in tables.items() if of.target == name]
        rows = [
            row
            for costs in of_target
            for number, table in enumerate(costs.tables)
            for row in _rows(workspace.space, sampling, sampled, costs, number, table)
        ]
        networks = [sorted(map(list, costs.networks)) for costs in of_target]
        key = fingerprint(sampled.target_key, workspace.space.fingerprint, networks)
        facts = {"teacher_ms": str(sampled.teacher_ms)}
        COSTS.write(workspace.storage, layout.costs(name), rows, key, facts)


def _rows(
    space: LayerwiseSpace,
    sampling: Sampling,
    sampled: SampledCandidates,
    costs: CostTables,
    number: int,
    table: CostTable,
) -> Iterator[CostRow]:
    for layer, ids in enumerate(space.ids):
        for choice, candidate in enumerate(ids):
            sample = sampled.candidates[layer][choice] if costs.id == sampled.latency else None
            yield CostRow(
                target=sampled.target.name,
                cost=costs.id.cost,
                calibration=number,
                layer=layer,
                name=candidate.layer,
                choice=choice,
                op=candidate.op,
                value=float(table.costs[layer][choice]),
                rest=table.rest,
                table_error=table.error,
                table_error_isolated=table.error_isolated,
                networks=table.networks,
                isolated=float(costs.isolated[layer][choice]),
                considered=choice in sampling.considered[layer],
                iqr=sample.iqr_ms if sample else None,
                repeats=sample.repeats if sample else None,
                settled=sample.settled if sample else None,
                error=sample.error if sample else None,
            )


def isolated_latencies(
    space: LayerwiseSpace, target: Target, samples: Mapping[str, Sample]
) -> list[NDArray[np.float64]]:
    """Latencies of candidates alone in ms by layer, shape [candidates]; infinite if one does not run."""
    isolated = []
    for layer, ops in enumerate(space.ops):
        empty = samples[empty_work(space, layer).key]
        taken = [samples[candidate_work(space, layer, choice).key] for choice in range(len(ops))]
        if taken[0].error is not None:
            raise UserError(
                "refused",
                f"target {target.name!r}: the teacher's layer {space.layers[layer].name} does not run: "
                f"{taken[0].error}",
            )
        # If the empty program fails, the calibration with whole networks estimates the cost of a call.
        call_ms = empty.median_ms if empty.error is None else 0.0
        values = [s.median_ms - call_ms if s.error is None else np.inf for s in taken]
        isolated.append(np.maximum(np.asarray(values), 0.0))
    return isolated


def _networks(workspace: Workspace, target: Target, among: Choices) -> list[Architecture]:
    """The networks of candidates in ``among`` to measure, each once."""
    return list(dict.fromkeys(balanced(target.measure.architectures, among, workspace.config.run.seed)))


def _planned_networks(workspace: Workspace, target: Target, samples: Mapping[str, Sample]) -> list[Work]:
    among = worth(isolated_latencies(workspace.space, target, samples), workspace.config.pool.max_cost)
    return [network_work(workspace.space, a) for a in _networks(workspace, target, among)]


def _sampled(workspace: Workspace, job: Job) -> SampledCandidates:
    space = workspace.space
    isolated = isolated_latencies(space, job.target, job.samples)
    _say_failed_empties(space, job.target, job.samples)
    considered = worth(isolated, workspace.config.pool.max_cost)
    taken = {a: job.samples[network_work(space, a).key] for a in _networks(workspace, job.target, considered)}
    ran = [architecture for architecture, sample in taken.items() if sample.error is None]
    if len(ran) < 2:
        reason = next((s.error for s in taken.values() if s.error), "too few networks")
        raise UserError("refused", f"target {job.target.name!r}: no student runs: {reason}")
    return SampledCandidates(
        target=job.target,
        placement=job.placement,
        target_key=job.target_key,
        teacher=job.references["teacher"],
        floor=job.references.get("floor"),
        candidates=tuple(
            tuple(job.samples[candidate_work(space, layer, choice).key] for choice in range(len(ops)))
            for layer, ops in enumerate(space.ops)
        ),
        considered=considered,
        drawn=tuple(dict.fromkeys([space.teacher, *ran])),
    )


def _latency_tables(workspace: Workspace, job: Job, sampled: SampledCandidates, quantile: str) -> CostTables:
    space = workspace.space
    networks = {space.teacher: measured([sampled.teacher], quantile)}
    networks |= {a: measured([job.samples[network_work(space, a).key]], quantile) for a in sampled.drawn[1:]}
    networks |= {a: cost for a, cost in _stored(workspace, sampled, quantile).items() if a not in networks}
    isolated = isolated_latencies(space, job.target, job.samples)
    of = CostId(latency_cost(quantile), job.target.name)
    return first_costs(of, isolated, _op_names(space), networks, space.teacher)


def _stored(
    workspace: Workspace, sampled: SampledCandidates, quantile: str
) -> dict[Architecture, MeasuredCost]:
    """All stored networks of considered candidates, whichever design or stage had them measured.

    Networks that were measured in sessions do not count. They are students that tables proposed, and a
    resumed run must begin with the table that it began with at first.
    """
    space, considered = workspace.space, [set(choices) for choices in sampled.considered]
    networks: dict[Architecture, MeasuredCost] = {}
    for sample in workspace.samples.read(sampled.target_key):
        if sample.kind != "network" or sample.error is not None:
            continue
        try:
            architecture = space.parse(sample.what)
        except ValueError:
            continue  # of another space or pool
        is_considered = all(choice in some for choice, some in zip(architecture, considered, strict=True))
        if is_considered and sample.key == space.network_structure(architecture):  # has no session
            networks.setdefault(architecture, measured([sample], quantile))
    return dict(sorted(networks.items()))


def _other_tables(workspace: Workspace, costs: Sequence[str], sampling: Sampling) -> dict[CostId, CostTables]:
    metered = [cost for cost in costs if cost not in COUNTED]
    counted = COUNTED if metered else [cost for cost in costs if cost in COUNTED]
    exact = {cost: exact_costs(workspace, cost, sampling.considered) for cost in counted}
    tables = {CostId(cost): exact[cost] for cost in costs if cost in COUNTED}
    for cost in metered:
        tables |= _metered_tables(workspace, cost, sampling, list(exact.values()))
    return tables


def _metered_tables(
    workspace: Workspace, cost: str, sampling: Sampling, exact: Sequence[CostTables]
) -> dict[CostId, CostTables]:
    """Tables of a cost that meters can only read of networks; they read those that were timed."""
    space, targets = workspace.space, sampling.targets
    asked = {name: sampled.drawn for name, sampled in targets.items()}
    costs = readings(workspace, space, cost, targets, asked, "sample")
    tables = {}
    for name, sampled in targets.items():
        of, values = CostId(cost, name), costs[name]
        if space.teacher not in values or len(values) < 2:
            raise UserError("failed", f"target {name!r}: {cost} could be read for too few networks")
        priors = [sampling.tables[sampled.latency].isolated, *(one.isolated for one in exact)]
        networks = {a: MeasuredCost(value=value) for a, value in values.items()}
        tables[of] = proportional_costs(of, priors, _op_names(space), networks, space.teacher)
    return tables


def _op_names(space: LayerwiseSpace) -> list[list[str]]:
    return [[op.name for op in ops] for ops in space.ops]


def _say_failed_empties(space: LayerwiseSpace, target: Target, samples: Mapping[str, Sample]) -> None:
    """Says for which layers the candidates' costs include the cost of a call."""
    failed = {
        layer.name: samples[key].error
        for i, layer in enumerate(space.layers)
        if samples[key := empty_work(space, i).key].error is not None
    }
    if failed:
        say(
            f"sample: {target.name}: an empty program with the shape of {', '.join(failed)} does not run "
            f"({next(iter(failed.values()))}); the cost of a call is not subtracted from their candidates"
        )


def _say_errors(sampling: Sampling) -> None:
    for of, costs in sampling.tables.items():
        if not costs.is_exact:
            table = costs.table
            say(
                f"sample: {of.target}: the teacher's {of.cost} is {of.written(costs.teacher)}; the table's "
                f"median error on networks left out is {100 * table.error:.1f} % (sum of candidates alone: "
                f"{100 * table.error_isolated:.1f} %)"
            )


def _say_left_out(reasons: Mapping[CandidateId, str]) -> None:
    counts = Counter(reasons.values())
    if counts[SLOW]:
        say(f"sample: left out {counts[SLOW]} candidates slower than pool.max_cost allows on every target")
    if counts[FAILS]:
        say(f"sample: left out {counts[FAILS]} candidates that run on no target; the report says why")


def plan(planned: Planned) -> list[str]:
    """The pool, and the measurements on every target with their place."""
    alone = len(planned_candidates(planned.space))
    rows = ["\n".join(f"pool: {line}" for line in offers(planned.space))]
    for target in planned.workspace.targets:
        networks = target.measure.architectures
        minutes = (alone + networks) * target.measure.time_limit_s / 60
        lines = [
            f"{target.name} ({target.runtime}, {target.precision}, {target.threads} threads, batch "
            f"{target.batch_size}, {target.device}): {alone} candidates alone and {networks} whole networks, "
            + (
                f"at most {minutes:.0f} minutes of timing, plus the time to build each program"
                if target.command is None
                else f"each between two runs of a reference, by {without_passwords(target.command.run)}"
            ),
            planned.places[target.name],
        ]
        if fix := RUNTIMES[target.runtime].missing:
            lines.append(f"runtime missing on this machine: {fix}")
        rows.append("\n".join(lines))
    return rows
