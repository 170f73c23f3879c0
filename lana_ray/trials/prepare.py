"""What searches need before they begin: a model of the cost on every target, and what it is relative to."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lana_ray.cluster.job import Job
from lana_ray.costs.work import network_work
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.fitting import MeasuredNetworks, fit_predictors, paced
from lana_ray.measurement.latencies import LATENCY, Sampled, latencies, measure, placements, ran
from lana_ray.measurement.readings import readings, teacher_cost
from lana_ray.monitoring.progress import say
from lana_ray.predictors.fits import Fit
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.selection.loop import Tables
from lana_ray.spaces.cells import CellStudents
from lana_ray.trials.problem import Setup, trial_training
from lana_ray.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One target, ready to be searched for."""

    setup: Setup
    budgets: tuple[float, float]
    """The lowest and the highest budget worth trying, in the cost's unit."""
    teacher: float
    """Cost of the teacher."""
    identity: Any
    """Everything that trials depend on besides teacher, target and settings."""


def prepare_layers(
    workspace: Workspace,
    sampled: Mapping[str, Sampled],
    tables: Tables,
    scores: Sequence[NDArray[np.float64]],
) -> list[Prepared]:
    """LANA's space: the cost is the sampled table of ``search.cost``, and relative to the teacher's.

    Scores are [candidates] per layer, infinite for candidates that may not be chosen.
    """
    cost, prepared = workspace.config.search.cost, []
    for name, target in sampled.items():
        costs = tables.get(CostId(cost, name)) or tables[CostId(cost)]
        table = costs.table
        usable = zip(table.costs, scores, strict=True)
        cheapest = table.rest + sum(float(of_layer[np.isfinite(s)].min()) for of_layer, s in usable)
        setup = Setup(
            config=workspace.config,
            sampled=target,
            of=costs.id,
            model=table,
            reference=costs.teacher,
            scores=scores,
        )
        prepared.append(
            Prepared(
                setup=setup,
                budgets=(min(1.001 * cheapest, costs.teacher), costs.teacher),
                teacher=costs.teacher,
                identity=[of_layer.tolist() for of_layer in (*table.costs, *scores)],
            )
        )
    return prepared


def prepare_cells(workspace: Workspace) -> list[Prepared]:
    """A cell space (LA-DNAS, arXiv 2001.06392): random cells are measured and a predictor is fitted.

    λ is relative to the mean cost of random cells.
    """
    students, cost, cells = workspace.cells, workspace.config.search.cost, workspace.config.search.cells
    assert cells is not None
    sampled, networks = _sample_cells(workspace, students)
    if cost == LATENCY:
        more = functools.partial(latencies, workspace, students, sampled)
    else:
        more = functools.partial(readings, workspace, students, cost, sampled)
    measured = {
        CostId(cost, name): MeasuredNetworks(
            encode=students.cells.encode,
            networks=costs,
            active=cells.active,
            structure=students.network_structure,
            draw=students.cells.random,
            sample_s=paced(workspace, students, sampled[name], costs) if cost == LATENCY else None,
        )
        for name, costs in networks.items()
    }
    prepared = []
    for fit in fit_predictors(workspace, measured, students.name, more):
        target = sampled[str(fit.id.target)]
        values = list(networks[target.target.name].values())
        setup = Setup(
            config=workspace.config,
            sampled=target,
            of=fit.id,
            model=_fitted(workspace, fit),
            reference=float(np.mean(values)),
        )
        prepared.append(
            Prepared(
                setup=setup,
                budgets=(min(values), max(values)),
                teacher=teacher_cost(workspace, cost, target),
                identity=(trial_training(workspace.config).model_dump(), values),
            )
        )
    return prepared


def _sample_cells(
    workspace: Workspace, students: CellStudents
) -> tuple[dict[str, Sampled], dict[str, dict[Architecture, float]]]:
    """Measures random cells on every target; the costs of those that ran.

    For another cost than latency, only the latency of the references is measured.
    """
    config, where = workspace.config, placements(workspace)
    assert config.search.cells is not None
    drawn = _random_cells(students, config.search.cells.samples, config.run.seed)
    timed = drawn if config.search.cost == LATENCY else []
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
            teacher=job.references["teacher"],
            floor=job.references.get("floor"),
            space=students.name,
        )
        for job in jobs
    }
    if config.search.cost == LATENCY:
        return sampled, {job.target.name: ran(job, work) for job in jobs}
    asked = dict.fromkeys(sampled, drawn)
    return sampled, readings(workspace, students, config.search.cost, sampled, asked, "cells")


def _random_cells(students: CellStudents, count: int, seed: int) -> list[Architecture]:
    """Different networks; fewer if the space does not have that many."""
    rng, drawn = np.random.default_rng(seed), dict[str, Architecture]()
    for _ in range(20 * count):
        architecture = students.cells.random(rng)
        drawn.setdefault(students.network_structure(architecture), architecture)
        if len(drawn) == count:
            break
    return list(drawn.values())


def _fitted(workspace: Workspace, fit: Fit) -> LatencyPredictor:
    """A target's predictor, after a line on how good it is."""
    quality = fit.quality
    say(
        f"search: {fit.id.target}: {fit.id.cost} of {fit.space} predicted within "
        f"{100 * quality.median_error:.1f} % in the median, rank correlation {quality.spearman:.3f}, "
        f"from {fit.curve[-1][0]} of them"
    )
    return LatencyPredictor.from_bytes(workspace.storage.read_bytes(fit.file), fit.file)
