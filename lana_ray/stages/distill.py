"""Stage 3: every candidate of every layer learns to stand in for it."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from lana_ray.cluster.claims import PROCESS_BYTES, Ask, occupied, share
from lana_ray.cluster.connection import Node, nodes
from lana_ray.cluster.distill_worker import GIB, Ending, distill_worker, ending
from lana_ray.cluster.groups import WorkerGroup
from lana_ray.cluster.trainers import elastic, run_training
from lana_ray.config import RayConfig
from lana_ray.distill.demand import Demand, demand
from lana_ray.distill.rounds import Candidate, memory, plan_rounds
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.stages.sample import TargetCosts, considered
from lana_ray.workspace import Workspace

_BACKWARD = 3.0  # times as long as a forward pass is a step, which goes forward, back and to the weights
CURVES = "curves.parquet"
_SCHEMA = pa.schema(
    {
        "layer": pa.int64(),
        "name": pa.string(),
        "choice": pa.int64(),
        "op": pa.string(),
        "stopped": pa.string(),
        "error": pa.list_(pa.float64()),
    }
)


def run(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> None:
    """Writes ``candidates/*.safetensors`` and ``curves.parquet``; what is there and still fits is kept."""
    wanted = [
        (layer, choice)
        for layer, choices in enumerate(considered(costs))
        for choice in choices
        if workspace.has_weights(layer, choice)
    ]
    ends = _endings(workspace, wanted)
    say(f"distill: {len(wanted) - len(ends)} candidates to train, {len(ends)} reused")
    # Where the cluster shrinks, nobody comes back for a round that was in hand.
    while pending := [candidate for candidate in wanted if candidate not in ends]:
        times = {c: _BACKWARD * time for c, time in _times(pending, costs).items()}
        train(workspace, times, overhead=next(iter(costs.values())).teacher_ms)
        finished = _endings(workspace, pending)
        if not finished:
            raise UserError(
                f"distill: the workers left before any of {len(pending)} candidates was finished; their "
                "states are kept, and running this again goes on from there"
            )
        ends |= finished
    _write_curves(workspace, {candidate: ends[candidate] for candidate in wanted})
    error = float(np.median([end.error for end in ends.values() if not end.stopped] or [np.nan]))
    stopped = collections.Counter(end.stopped for end in ends.values() if end.stopped)
    notes = "".join(f", {count} {why}" for why, count in stopped.items())
    say(f"distill: {len(ends)} candidates, with a normalised error of {error:.3f} in the median{notes}")


def _endings(workspace: Workspace, candidates: Sequence[Candidate]) -> dict[Candidate, Ending]:
    """Of those that the run directory holds."""
    found = {candidate: ending(workspace, candidate) for candidate in candidates}
    return {candidate: end for candidate, end in found.items() if end is not None}


def _write_curves(workspace: Workspace, ends: Mapping[Candidate, Ending]) -> None:
    rows = [
        {
            "layer": layer,
            "name": workspace.layers[layer].name,
            "choice": choice,
            "op": workspace.space.ops[layer][choice].name,
            "stopped": end.stopped or None,
            "error": end.curve,
        }
        for (layer, choice), end in ends.items()
    ]
    key = fingerprint([workspace.candidate_key(*candidate) for candidate in ends])
    workspace.storage.write_table(CURVES, pa.Table.from_pylist(rows, schema=_SCHEMA), key)


def train(workspace: Workspace, times: dict[Candidate, float], *, overhead: float) -> None:
    """Trains candidates through Ray Train.

    Args:
        times: of a step of each, in any unit.
        overhead: of the teacher's pass, in the same.
    """
    config, settings = workspace.config, workspace.config.distill
    demands = find_demands(workspace, list(times))
    limit = settings.memory_gb * GIB
    needed = min(limit, memory(list(times), demands, settings.batch_size))
    groups = worker_groups(config.ray, len(times), PROCESS_BYTES + int(needed), nodes(gone=True))
    rounds = plan_rounds(
        times,
        demands,
        overhead=overhead,
        workers=sum(group.most for group in groups),
        batch_size=settings.batch_size,
        limit_bytes=limit,
        most=settings.group_size,
    )
    run_training(
        distill_worker,
        {"demands": demands},
        config,
        title="distill",
        total=len(times) * settings.steps,
        groups=groups,
        process_group=False,
        rounds=rounds,
    )


def worker_groups(
    config: RayConfig, candidates: int, memory: int, known: Sequence[Node]
) -> list[WorkerGroup]:
    """The workers that distil: those of the configuration, and CPU workers next to those with GPUs.

    Args:
        memory: bytes that one of them takes.
        known: the nodes.
    """
    name = "gpu worker" if config.gpus_per_worker else "worker"
    most = min(candidates, config.workers or candidates)
    ask = Ask(most=most, gpus=config.gpus_per_worker, cpus=config.cpus_per_worker, memory=memory)
    if not config.cpu_workers:
        return [elastic(name, ask, config, known)]
    most_cpus = max((node.cpus for node in known), default=1)
    widths = [config.cpus_per_worker] if config.cpus_per_worker else range(1, most_cpus + 1)

    def both(cpus: int) -> tuple[int, int, int]:
        """How many workers of so many CPUs there are with a GPU, and how many without next to them."""
        count, claim = share(replace(ask, cpus=cpus), known)
        others = Ask(most=config.cpu_workers, cpus=cpus, memory=memory)
        return count, share(others, occupied(known, claim, count))[0], cpus

    cpus = max(map(both, widths))[-1]
    main = elastic(name, replace(ask, cpus=cpus), config, known)
    others = WorkerGroup(
        name="cpu worker",
        workers=(1, config.cpu_workers) if config.cpu_workers > 1 else 1,
        cpus=cpus,
        memory=main.memory,
    )
    return [main, others]


def find_demands(workspace: Workspace, pending: Sequence[Candidate]) -> dict[Candidate, Demand]:
    """Of every candidate; equal structures are tried once."""
    space = workspace.space
    known: dict[str, Demand] = {}
    found = {}
    for layer, choice in pending:
        structure = space.structure(layer, choice)
        if structure not in known:
            known[structure] = demand(space.candidate(layer, choice).train(), space.layers[layer])
        found[layer, choice] = known[structure]
    return found


def _times(pending: Sequence[Candidate], costs: Mapping[str, TargetCosts]) -> dict[Candidate, float]:
    """What each candidate took alone on the first target, the mean where it does not run there."""
    isolated = next(iter(costs.values())).isolated_ms
    times = {(i, j): float(isolated[i][j]) for i, j in pending}
    finite = [t for t in times.values() if t < float("inf")]
    mean = sum(finite) / len(finite) if finite else 1.0
    return {c: t if t < float("inf") else mean for c, t in times.items()}
