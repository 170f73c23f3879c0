"""LA-DNAS' search and LANA's program side by side: on the same candidates, with the same cost tables."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lana_ray.cluster.sweeps import Trial, uniform
from lana_ray.cluster.tasks import device
from lana_ray.config import Config
from lana_ray.monitoring.progress import say
from lana_ray.networks.teachers import Teacher
from lana_ray.predictors.fits import folder_of
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.run_dir.resumable import checkpoint_in
from lana_ray.search.bilevel import SearchResult, search
from lana_ray.search.cost import AdditiveCost
from lana_ray.search.layerwise import LayerwiseSupernet, divergence
from lana_ray.search.settings import SearchSettings
from lana_ray.selection import select
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import Architecture, Choices
from lana_ray.stages import fit
from lana_ray.stages.evaluate import validated
from lana_ray.stages.meter import readings, teacher_cost
from lana_ray.stages.sample import TargetCosts
from lana_ray.stages.search import (
    EPOCHS,
    batches,
    finish,
    judged,
    lambdas,
    learnt,
    seed_of,
    sweep,
    use_threads,
)
from lana_ray.stages.select import constrained_scores
from lana_ray.workspace import Workspace, workspace_in_worker

_DECISIVE = 0.1
"""Weight of α's entropy at the end, so that what is decided is what the discretisation keeps."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trials of a sweep have in common."""

    config: Config
    method: str
    costs: TargetCosts
    predictor: LatencyPredictor | None
    """Of the cost, where it is not latency: that alone adds up in a table."""
    reference: float
    """The teacher's cost, which λ is relative to."""
    scores: Sequence[NDArray[np.float64]]
    """Per layer, shape [candidates]; infinite for what must not be chosen."""

    def cost(self) -> nn.Module:
        """What is searched for, as a differentiable function of encodings."""
        return self.predictor.as_module() if self.predictor else AdditiveCost(self.costs.table)


def run(
    workspace: Workspace,
    teacher: Teacher,
    costs: Mapping[str, TargetCosts],
    scores: Sequence[NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """Sweeps λ of the differentiable search and budgets of the program; writes ``search.parquet``.

    Where the cost is not latency, random students are metered on every target and a predictor of it is
    fitted; the program is not run. Every trial's student is judged alike: measured whole on its target, its
    accuracy on the validation images, with its distilled weights and batch statistics. Nothing is fine-tuned.
    """
    usable, config, rows = constrained_scores(workspace, scores), workspace.config, []
    found = _metered(workspace, costs, usable) if config.search.metered else {}
    if found and "program" in config.search.methods:
        say(f"search: the integer program has tables of latency alone: not run for {config.search.cost}")
    for name, known in costs.items():
        predictor, metered = found.get(name, (None, {}))
        tables = [table.tolist() for table in (*known.table.costs_ms, *usable)]
        for method in ["differentiable"] if predictor else config.search.methods:
            setup = Setup(
                config=config,
                method=method,
                costs=known,
                predictor=predictor,
                reference=teacher_cost(workspace, known),
                scores=usable,
            )
            identity = (tables, list(metered.values()))
            rows += sweep(workspace, known, method, TRIAL, setup, _space(setup, metered), identity)
    return finish(workspace, teacher, rows)


def _metered(
    workspace: Workspace, costs: Mapping[str, TargetCosts], scores: Sequence[NDArray[np.float64]]
) -> dict[str, tuple[LatencyPredictor, dict[Architecture, float]]]:
    """By target: a predictor of the cost of students, and the random ones that were metered for it."""
    space, config, choices = workspace.space, workspace.config, _choices(scores)
    more = functools.partial(readings, workspace, space, costs)
    asked = {
        name: _random_students(space, sampled.target.measure.architectures, choices, config.run.seed)
        for name, sampled in costs.items()
    }
    networks = more(asked, "search")
    known = {
        name: fit.Known(
            encode=space.encode,
            networks=networks[name],
            active=sampled.target.measure.active,
            structure=space.network_structure,
            draw=functools.partial(space.random, among=choices),
        )
        for name, sampled in costs.items()
    }
    fits = fit.run(workspace, known, more, folder_of("layers", config.search.cost))
    return {f.target: (learnt(workspace, f, "students"), networks[f.target]) for f in fits}


def _random_students(space: LayerwiseSpace, count: int, choices: Choices, seed: int) -> list[Architecture]:
    """The teacher and so many others, in a balanced design as far as none comes twice; fewer where there are
    not so many."""
    rng = np.random.default_rng(seed)
    drawn = dict.fromkeys([space.teacher, *space.balanced(count, rng, choices)])
    for _ in range(20 * count):
        if len(drawn) > count:
            break
        drawn.setdefault(space.random(rng, choices))
    return list(drawn)


def _choices(scores: Sequence[NDArray[np.float64]]) -> Choices:
    """The candidates that may be chosen, layer by layer."""
    return tuple(tuple(int(j) for j in np.flatnonzero(np.isfinite(s))) for s in scores)


def _space(setup: Setup, metered: Mapping[Architecture, float]) -> dict[str, Any]:
    settings, table = setup.config.search, setup.costs.table
    if setup.method == "differentiable" and settings.aim == "lambda":
        return lambdas(settings)
    if metered:
        return {"budget": uniform(min(metered.values()), max(metered.values()))}
    usable = (cost[np.isfinite(score)] for cost, score in zip(table.costs_ms, setup.scores, strict=True))
    cheapest = table.rest_ms + sum(float(of_layer.min()) for of_layer in usable)
    return {"budget": uniform(1.001 * cheapest, setup.costs.teacher_ms)}


def _find(settings: dict[str, float], setup: Setup, file: str) -> dict[str, Any]:
    """Finds a student and how exact it is."""
    workspace = workspace_in_worker(setup.config)
    use_threads(setup.config)
    begin, collapsed = time.monotonic(), False
    if setup.method == "program":
        architecture = _by_program(settings["budget"], setup)
    else:
        found = _by_gradient(workspace, settings, setup, file)
        architecture, collapsed = found.architecture, found.collapsed
    search_s = time.monotonic() - begin
    loss, accuracy = validated(workspace, architecture)
    predicted_ms = predicted_cost = setup.costs.table.predict(architecture)
    if setup.predictor:
        predicted_cost = float(setup.predictor.predict(workspace.space.encode(architecture)[None])[0])
    return {
        "choices": list(architecture),
        "predicted_ms": predicted_ms,
        "predicted_cost": predicted_cost,
        "accuracy": accuracy,
        "loss": loss,
        "search_s": search_s,
        "collapsed": collapsed,
    }


def _judge(found: dict[str, Any], settings: dict[str, float], setup: Setup) -> dict[str, Any]:
    """Measures a student."""
    workspace = workspace_in_worker(setup.config)
    return judged(workspace, setup.costs, workspace.space, tuple(found["choices"]))


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
    steps, seed = max(1, config.steps // EPOCHS), seed_of(setup.config, settings)
    return search(
        LayerwiseSupernet(space, workspace.candidate, _choices(setup.scores)).to(where),
        setup.cost().to(where),
        settings=SearchSettings(
            epochs=EPOCHS,
            warmup_epochs=0,
            alpha_lr=config.lr,
            alpha_decay=0.0,
            mixture=config.mixture,
            multiplier=settings.get("lambda", 0.0),
            target=settings.get("budget"),
            entropy_weight=_DECISIVE,
            seed=seed,
        ),
        reference=setup.reference,
        operations=[[op.name for op in ops] for ops in space.ops],
        weight_batches=batches(workspace, "train", steps, seed),
        alpha_batches=batches(workspace, "score", steps, seed),
        steps=steps,
        loss=divergence(workspace.teacher.to(where)),
        checkpoint=checkpoint_in(workspace.storage, file),
    )


TRIAL = Trial(find=_find, judge=_judge)
