"""Stage 3: distils every candidate from the layer that it may replace."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lana_ray.cluster.claims import PROCESS_BYTES, Ask, Claim, occupied, share
from lana_ray.cluster.connection import Node, nodes
from lana_ray.cluster.distill_worker import GIB, Ending, distill_worker, ending
from lana_ray.cluster.groups import WorkerGroup
from lana_ray.cluster.trainers import Training, elastic, run_training
from lana_ray.config import RayConfig
from lana_ray.distill.rounds import Demand, demand, memory, plan_rounds
from lana_ray.errors import UserError
from lana_ray.ids import CandidateId
from lana_ray.monitoring.progress import say
from lana_ray.ops import count_weights
from lana_ray.preflight.planned import Planned, in_words
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.tables import CURVES, CurveRow
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.stages.sample import Sampling
from lana_ray.workspace import Workspace

_BACKWARD = 3.0  # duration of a training step relative to a forward pass


def run(workspace: Workspace, sampling: Sampling) -> None:
    """Writes ``candidates/*.safetensors`` and ``curves.parquet``; valid earlier results are kept."""
    wanted = [
        ids[choice]
        for ids, choices in zip(workspace.space.ids, sampling.considered, strict=True)
        for choice in choices
        if workspace.has_weights(ids[choice])
    ]
    ends = _endings(workspace, wanted)
    say(f"distill: {len(wanted) - len(ends)} candidates to train, {len(ends)} reused")
    # If the cluster shrinks during the last rounds, unfinished ones need another training.
    while pending := [candidate for candidate in wanted if candidate not in ends]:
        first = next(iter(sampling.targets.values()))
        isolated = sampling.tables[first.latency].isolated
        times = {c: _BACKWARD * time for c, time in _times(workspace, pending, isolated).items()}
        train(workspace, times, overhead=first.teacher_ms)
        finished = _endings(workspace, pending)
        if not finished:
            raise UserError(
                "failed",
                f"distill: the workers left before any of {len(pending)} candidates was finished; rerun the "
                "same command; training states are kept",
            )
        ends |= finished
    _write_curves(workspace, {candidate: ends[candidate] for candidate in wanted})
    error = float(np.median([end.error for end in ends.values() if not end.stopped] or [np.nan]))
    stopped = collections.Counter(end.stopped for end in ends.values() if end.stopped)
    notes = "".join(f", {count} {why}" for why, count in stopped.items())
    say(f"distill: {len(ends)} candidates with a median normalised error of {error:.3f}{notes}")


def _endings(workspace: Workspace, candidates: Sequence[CandidateId]) -> dict[CandidateId, Ending]:
    """The results of those candidates that are distilled already."""
    ends = {candidate: ending(workspace, candidate) for candidate in candidates}
    return {candidate: end for candidate, end in ends.items() if end is not None}


def _write_curves(workspace: Workspace, ends: Mapping[CandidateId, Ending]) -> None:
    places = {candidate: workspace.space.place(candidate) for candidate in ends}
    rows = [
        CurveRow(
            layer=places[candidate][0],
            name=candidate.layer,
            choice=places[candidate][1],
            op=candidate.op,
            stopped=end.stopped or None,
            error=tuple(end.curve),
        )
        for candidate, end in ends.items()
    ]
    key = fingerprint([workspace.candidate_key(candidate) for candidate in ends])
    CURVES.write(workspace.storage, layout.CURVES, rows, key)


def train(workspace: Workspace, times: dict[CandidateId, float], *, overhead: float) -> None:
    """Trains candidates in Ray Train; ``times`` of steps and ``overhead`` of the teacher share a unit."""
    config, settings = workspace.config, workspace.config.distill
    demands = find_demands(workspace, list(times))
    limit = settings.memory_gb * GIB
    needed = min(limit, memory(list(times), demands, settings.batch_size))
    groups = worker_groups(config.ray, len(times), PROCESS_BYTES + int(needed), nodes(gone=True))
    rounds = plan_rounds(
        times,
        lambda some: memory(some, demands, settings.batch_size) <= limit,
        overhead=overhead,
        workers=sum(group.most for group in groups),
        most=settings.group_size,
    )
    training = Training(
        title="distill",
        worker=distill_worker,
        setting={"demands": demands},
        groups=groups,
        total=len(times) * settings.steps,
        rounds=rounds,
    )
    run_training(training, config)


def worker_groups(
    config: RayConfig, candidates: int, memory: int, cluster: Sequence[Node]
) -> list[WorkerGroup]:
    """The workers that distil: the configured ones, and ``ray.cpu_workers`` in addition to those with GPUs.

    Args:
        memory: bytes per worker.
        cluster: the nodes, including those that have left.
    """
    name = "gpu worker" if config.gpus_per_worker else "worker"
    most = min(candidates, config.workers or candidates)
    ask = Ask(most=most, gpus=config.gpus_per_worker, cpus=config.cpus_per_worker, memory=memory)
    if not config.cpu_workers:
        return [elastic(name, ask, config, cluster)]
    most_cpus = max((node.cpus for node in cluster), default=1)
    widths = [config.cpus_per_worker] if config.cpus_per_worker else range(1, most_cpus + 1)

    def both(cpus: int) -> tuple[int, int, int]:
        """The numbers of workers with and without a GPU that fit if each claims ``cpus`` CPUs."""
        count, claim = share(replace(ask, cpus=cpus), cluster)
        others = Ask(most=config.cpu_workers, cpus=cpus, memory=memory)
        return count, share(others, occupied(cluster, claim, count))[0], cpus

    cpus = max(map(both, widths))[-1]
    main = elastic(name, replace(ask, cpus=cpus), config, cluster)
    claim = Claim(cpus=cpus, memory=main.claim.memory)
    return [main, WorkerGroup(name="cpu worker", most=config.cpu_workers, claim=claim)]


def find_demands(workspace: Workspace, pending: Sequence[CandidateId]) -> dict[CandidateId, Demand]:
    """The memory demands of candidates; equal structures are tried once."""
    space = workspace.space
    by_structure: dict[str, Demand] = {}
    demands = {}
    for candidate in pending:
        layer, choice = space.place(candidate)
        structure = space.structure(layer, choice)
        if structure not in by_structure:
            by_structure[structure] = demand(space.candidate(layer, choice).train(), space.layers[layer])
        demands[candidate] = by_structure[structure]
    return demands


def _times(
    workspace: Workspace, pending: Sequence[CandidateId], isolated: Sequence[NDArray[np.float64]]
) -> dict[CandidateId, float]:
    """The latency of each candidate alone on the first target; the mean for one that does not run there."""
    places = {candidate: workspace.space.place(candidate) for candidate in pending}
    times = {candidate: float(isolated[i][j]) for candidate, (i, j) in places.items()}
    finite = [t for t in times.values() if t < float("inf")]
    mean = sum(finite) / len(finite) if finite else 1.0
    return {c: t if t < float("inf") else mean for c, t in times.items()}


def plan(planned: Planned) -> list[str]:
    """The numbers of candidates, steps and images; their time depends on the workers' hardware."""
    settings, space = planned.config.distill, planned.space
    candidates = trained_candidates(space)
    images = settings.steps * settings.batch_size
    passes = math.ceil(candidates / settings.group_size) * images
    less = "" if planned.config.pool.max_cost is None else "; less those that sampling finds too slow"
    return [
        f"{candidates} candidates of {len(space.layers)} layers, {settings.steps} steps of "
        f"{settings.batch_size} images; at most {settings.group_size} at once per worker{less}\n"
        f"{in_words(candidates * settings.steps)} steps of a candidate: {in_words(candidates * images)} "
        f"images through candidates, forward and back, and at least {in_words(passes)} through the teacher, "
        f"{in_words(passes * planned.teacher_macs)} multiply-accumulates\n"
        f"at most {in_words(4 * trained_weights(space))} bytes of weights to keep"
    ]


def trained_candidates(space: LayerwiseSpace) -> int:
    """The number of candidates that distillation trains."""
    return sum(space.is_trained(i, j) for i, choices in enumerate(space.everything) for j in choices)


def trained_weights(space: LayerwiseSpace) -> int:
    """The number of weights of all candidates that are trained; equal candidates are built only once."""
    counts: dict[object, int] = {}
    total = 0
    for i, (layer, ops) in enumerate(zip(space.layers, space.ops, strict=True)):
        for j, op in enumerate(ops):
            if not space.is_trained(i, j):
                continue
            key = (op.key, layer.name if op.of_teacher else layer.place)
            if key not in counts and op.of_teacher:
                counts[key] = sum(weight.numel() for weight in space.candidate(i, j).parameters())
            elif key not in counts:
                counts[key] = count_weights(op, layer)
            total += counts[key]
    return total
