"""LA-DNAS whole (arXiv 2001.06392): cells sampled on every target, what they cost learnt, and searches."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lana_ray.cluster.job import Job
from lana_ray.cluster.sweeps import Trial, uniform
from lana_ray.cluster.tasks import device
from lana_ray.config import Config, FinetuneConfig
from lana_ray.costs.work import network_work
from lana_ray.networks.teachers import Teacher
from lana_ray.predictors.fits import folder_of
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.run_dir.resumable import checkpoint_in
from lana_ray.search.bilevel import SearchResult, search
from lana_ray.search.settings import SearchSettings
from lana_ray.spaces.cells import CellStudents, CellSupernet
from lana_ray.spaces.space import Architecture
from lana_ray.stages import fit, train_cells
from lana_ray.stages.meter import readings
from lana_ray.stages.sample import Sampled, latencies, measure, placements, ran
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
from lana_ray.training.loop import Rank, train_network
from lana_ray.workspace import Workspace, cell_space, workspace_in_worker


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trials of a sweep have in common."""

    config: Config
    sampled: Sampled
    predictor: LatencyPredictor
    reference: float
    """The mean cost of random cells, which λ is relative to."""


def run(workspace: Workspace, teacher: Teacher) -> list[dict[str, Any]]:
    """Samples cells, fits predictors, sweeps λ on every target; writes ``search.parquet``.

    Every trial searches a cell, trains its network for ``search.cells.trial_epochs``, with the teacher's
    help, and measures it; its weights are kept in ``search/``. What is best for a budget is then trained in
    full and registered.
    """
    students, settings = workspace.cells, workspace.config.search
    sampled, costs = _sample(workspace, students)
    known = {name: _known(workspace, students, sampled[name], costs[name]) for name in sampled}
    more = functools.partial(readings if settings.metered else latencies, workspace, students, sampled)
    rows = []
    for found in fit.run(workspace, known, more, folder_of("cells", settings.cost)):
        name = found.target
        setup = Setup(
            config=workspace.config,
            sampled=sampled[name],
            predictor=learnt(workspace, found, "cells"),
            reference=float(np.mean(list(costs[name].values()))),
        )
        space = _space(setup, costs[name])
        identity = (_of_trials(workspace.config).model_dump(), list(costs[name].values()))
        rows += sweep(workspace, sampled[name], "differentiable", TRIAL, setup, space, identity)
    trials = finish(workspace, teacher, rows)
    train_cells.run(workspace, teacher, trials, sampled)
    return trials


def _sample(
    workspace: Workspace, students: CellStudents
) -> tuple[dict[str, Sampled], dict[str, dict[Architecture, float]]]:
    """Measures random cells on every target; the costs of those that ran.

    Where the cost is not latency, that of the references alone is measured.
    """
    config, where = workspace.config, placements(workspace)
    assert config.search.cells is not None
    drawn = _random_cells(students, config.search.cells.samples, config.run.seed)
    timed = [] if config.search.metered else drawn
    work = {architecture: network_work(students, architecture) for architecture in timed}
    jobs = [
        Job(target=t, placement=where[t.name], work=list(work.values()), space=students.name)
        for t in workspace.targets
    ]
    measure(workspace, jobs, "cells")
    sampled = {
        job.target.name: Sampled(
            target=job.target,
            placement=job.placement,
            target_key=job.target_key,
            teacher_ms=job.references["teacher"].median_ms,
            space=students.name,
        )
        for job in jobs
    }
    if config.search.metered:
        return sampled, readings(workspace, students, sampled, dict.fromkeys(sampled, drawn), "cells")
    return sampled, {job.target.name: ran(job, work) for job in jobs}


def _random_cells(students: CellStudents, count: int, seed: int) -> list[Architecture]:
    """Different networks; fewer where the space has not so many."""
    rng, drawn = np.random.default_rng(seed), dict[str, Architecture]()
    for _ in range(20 * count):
        architecture = students.cells.random(rng)
        drawn.setdefault(students.network_structure(architecture), architecture)
        if len(drawn) == count:
            break
    return list(drawn.values())


def _known(
    workspace: Workspace, students: CellStudents, sampled: Sampled, costs: Mapping[Architecture, float]
) -> fit.Known:
    settings, cells = workspace.config.search, workspace.config.search.cells
    assert cells is not None
    return fit.Known(
        encode=students.cells.encode,
        networks=costs,
        active=cells.active,
        structure=students.network_structure,
        draw=students.cells.random,
        sample_s=None if settings.metered else fit.paced(workspace, students, sampled, costs),
    )


def _space(setup: Setup, costs: Mapping[Architecture, float]) -> dict[str, Any]:
    if setup.config.search.aim == "lambda":
        return lambdas(setup.config.search)
    return {"budget": uniform(min(costs.values()), max(costs.values()))}


def _find(settings: dict[str, float], setup: Setup, file: str) -> dict[str, Any]:
    """Finds a cell and trains its network."""
    workspace = workspace_in_worker(setup.config)
    use_threads(setup.config)
    seed = seed_of(setup.config, settings)
    students = CellStudents(workspace.cells.cells, workspace.space, seed=seed)
    begin = time.monotonic()
    found = _search(workspace, students, settings, setup, file)
    search_s = time.monotonic() - begin
    accuracy = _train(workspace, students, found.architecture, file, seed)
    encoding = students.cells.encode(found.architecture)
    predicted = float(setup.predictor.predict(encoding[None])[0])
    return {
        "choices": list(found.architecture),
        "predicted_ms": None if setup.config.search.metered else predicted,
        "predicted_cost": predicted,
        "accuracy": accuracy,
        "loss": None,
        "search_s": search_s,
        "collapsed": found.collapsed,
        "trajectory": [[point.expected_cost, point.cost] for point in found.trajectory],
    }


def _judge(found: dict[str, Any], settings: dict[str, float], setup: Setup) -> dict[str, Any]:
    """Measures the network of a cell."""
    workspace, seed = workspace_in_worker(setup.config), seed_of(setup.config, settings)
    students = CellStudents(workspace.cells.cells, workspace.space, seed=seed)
    return judged(workspace, setup.sampled, students, tuple(found["choices"]))


def _search(
    workspace: Workspace,
    students: CellStudents,
    settings: Mapping[str, float],
    setup: Setup,
    file: str,
) -> SearchResult:
    config, where = setup.config.search, device(workspace)
    assert config.cells is not None
    steps, seed = max(1, config.steps // EPOCHS), seed_of(setup.config, settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        space = cell_space(setup.config, workspace.data.num_classes, of_supernet=True)
        supernet = CellSupernet(space, partial=config.cells.partial).to(where)
    names: Sequence[str] = students.cells.wiring.operations
    return search(
        supernet,
        setup.predictor.as_module().to(where),
        settings=SearchSettings(
            epochs=EPOCHS,
            warmup_epochs=round(config.warmup * EPOCHS),
            weight_lr=config.weight_lr,
            alpha_lr=config.lr,
            mixture=config.mixture,
            multiplier=settings.get("lambda", 0.0),
            target=settings.get("budget"),
            seed=seed,
        ),
        reference=setup.reference,
        operations=[names] * len(students.cells.sizes),
        weight_batches=batches(workspace, "train", steps, seed),
        alpha_batches=batches(workspace, "score", steps, seed),
        steps=steps,
        checkpoint=checkpoint_in(workspace.storage, file),
    )


def _train(
    workspace: Workspace, students: CellStudents, architecture: Architecture, file: str, seed: int
) -> float:
    """Accuracy on the validation images of the network's best epoch; its weights are kept."""
    storage, where = workspace.storage, device(workspace)
    state = f"{file}.training"
    trained = train_network(
        students.build(architecture),
        workspace.data,
        _of_trials(workspace.config),
        teacher=workspace.teacher.to(where),
        rank=Rank(),
        seed=seed,
        checkpoint=checkpoint_in(storage, state),
        on_step=lambda: None,
        device=where,
    )
    storage.write_tensors(f"{file.removesuffix('.search')}.safetensors", trained.state, {})
    storage.remove(state)
    return trained.validation_accuracy


def _of_trials(config: Config) -> FinetuneConfig:
    """How the networks of trials are trained."""
    assert config.search.cells is not None
    return config.finetune.model_copy(update={"epochs": config.search.cells.trial_epochs})


TRIAL = Trial(find=_find, judge=_judge)
