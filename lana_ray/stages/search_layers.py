"""LA-DNAS' search and LANA's program side by side: on the same candidates, with the same cost tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray import tune

from lana_ray.config import Config
from lana_ray.search.bilevel import SearchResult, search
from lana_ray.search.cost import AdditiveCost
from lana_ray.search.layerwise import LayerwiseSupernet, divergence
from lana_ray.search.settings import SearchSettings
from lana_ray.selection import select
from lana_ray.spaces.layerwise import Architecture
from lana_ray.stages.evaluate import validated
from lana_ray.stages.sample import TargetCosts
from lana_ray.stages.search import EPOCHS, batches, finish, judged, kept, sweep
from lana_ray.stages.select import constrained_scores
from lana_ray.tasks import device
from lana_ray.teachers import Teacher
from lana_ray.workspace import Workspace, workspace_in_worker

_DECISIVE = 0.1
"""Weight of α's entropy at the end, so that what is decided is what the discretisation keeps."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trials of a sweep have in common."""

    config: Config
    method: str
    costs: TargetCosts
    scores: Sequence[NDArray[np.float64]]
    """Per layer, shape [candidates]; infinite for what must not be chosen."""


def run(
    workspace: Workspace,
    teacher: Teacher,
    costs: Mapping[str, TargetCosts],
    scores: Sequence[NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """Sweeps λ of the differentiable search and budgets of the program; writes ``search.parquet``.

    Every trial's student is judged alike: measured whole on its target, its accuracy on the validation
    images, with its distilled weights and batch statistics. Nothing is fine-tuned.
    """
    usable, rows = constrained_scores(workspace, scores), []
    for known in costs.values():
        tables = [table.tolist() for table in (*known.table.costs_ms, *usable)]
        for method in workspace.config.search.methods:
            setup = Setup(config=workspace.config, method=method, costs=known, scores=usable)
            rows += sweep(workspace, known, method, _trial, setup, _space(setup), tables)
    return finish(workspace, teacher, rows)


def _space(setup: Setup) -> dict[str, Any]:
    settings, table = setup.config.search, setup.costs.table
    if setup.method == "differentiable" and settings.aim == "lambda":
        return {"lambda": tune.loguniform(*settings.lambdas)}
    usable = (cost[np.isfinite(score)] for cost, score in zip(table.costs_ms, setup.scores, strict=True))
    cheapest = table.rest_ms + sum(float(of_layer.min()) for of_layer in usable)
    return {"budget_ms": tune.uniform(1.001 * cheapest, setup.costs.teacher_ms)}


def _trial(settings: dict[str, float], setup: Setup, file: str) -> dict[str, Any]:
    """Finds a student and judges it; runs in a process of Ray Tune."""
    workspace = workspace_in_worker(setup.config)
    torch.set_num_threads(setup.config.ray.cpus_per_worker)
    begin, collapsed = time.monotonic(), False
    if setup.method == "program":
        architecture = _by_program(settings["budget_ms"], setup)
    else:
        found = _by_gradient(workspace, settings, setup, file)
        architecture, collapsed = found.architecture, found.collapsed
    search_s = time.monotonic() - begin
    loss, accuracy = validated(workspace, architecture)
    return {
        **judged(workspace, setup.costs, workspace.space, architecture),
        "predicted_ms": setup.costs.table.predict(architecture),
        "accuracy": accuracy,
        "loss": loss,
        "search_s": search_s,
        "collapsed": collapsed,
    }


def _by_program(budget_ms: float, setup: Setup) -> Architecture:
    """The best student by scores and table."""
    table = setup.costs.table
    costs = {"latency": table.costs_ms}
    [found] = select(setup.scores, costs, {"latency": budget_ms - table.rest_ms})
    return found.choices


def _by_gradient(
    workspace: Workspace, settings: Mapping[str, float], setup: Setup, file: str
) -> SearchResult:
    """The student that LA-DNAS finds among the same candidates, whose weights are frozen."""
    config, space, where = setup.config.search, workspace.space, device(workspace)
    choices = tuple(tuple(int(j) for j in np.flatnonzero(np.isfinite(s))) for s in setup.scores)
    steps = max(1, config.steps // EPOCHS)
    return search(
        LayerwiseSupernet(space, workspace.candidate, choices).to(where),
        AdditiveCost(setup.costs.table).to(where),
        settings=SearchSettings(
            epochs=EPOCHS,
            warmup_epochs=0,
            alpha_lr=config.lr,
            alpha_decay=0.0,
            mixture="paired",
            multiplier=settings.get("lambda", 0.0),
            target=settings.get("budget_ms"),
            entropy_weight=_DECISIVE,
            seed=setup.config.run.seed,
        ),
        reference=setup.costs.teacher_ms,
        operations=[[op.name for op in ops] for ops in space.ops],
        weight_batches=batches(workspace, "train", steps),
        alpha_batches=batches(workspace, "score", steps),
        steps=steps,
        loss=divergence(workspace.teacher.to(where)),
        checkpoint=kept(workspace.storage, file),
    )
