"""Stage 3: every candidate of every layer learns to stand in for it."""

from __future__ import annotations

from collections.abc import Mapping

from lana_ray.cluster import worker_count
from lana_ray.distill.partition import Candidate, partition
from lana_ray.distill.worker import distill_worker, is_done
from lana_ray.progress import say
from lana_ray.stages.sample import TargetCosts, considered
from lana_ray.training.driver import run_training
from lana_ray.workspace import Workspace

_OVERHEAD = 0.3  # of a mean candidate's step: its share of the teacher's pass and of the optimiser


def run(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> None:
    """Writes ``candidates/*.safetensors``; what is there and still fits is kept."""
    config = workspace.config
    wanted = [
        (layer, choice)
        for layer, choices in enumerate(considered(costs))
        for choice in choices
        if workspace.has_weights(layer, choice)
    ]
    pending = [candidate for candidate in wanted if not is_done(workspace, candidate)]
    say(f"distill: {len(pending)} candidates to train, {len(wanted) - len(pending)} reused")
    if not pending:
        return
    workers = min(worker_count(config.ray), len(pending))
    shares = partition(_step_costs(pending, costs), workers)
    total = len(pending) * config.distill.steps
    run_training(
        distill_worker,
        {"shares": shares},
        config,
        title="distill",
        total=total,
        workers=workers,
        process_group=False,
    )


def _step_costs(pending: list[Candidate], costs: Mapping[str, TargetCosts]) -> dict[Candidate, float]:
    """Relative time of a training step: what the candidate took alone on the first target."""
    isolated = next(iter(costs.values())).isolated_ms
    times = {(i, j): float(isolated[i][j]) for i, j in pending}
    finite = [t for t in times.values() if t < float("inf")]
    mean = sum(finite) / len(finite) if finite else 1.0
    return {c: (t if t < float("inf") else mean) + _OVERHEAD * mean for c, t in times.items()}
