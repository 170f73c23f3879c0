"""What all searches have in common: sweeps of trials that are judged alike, kept and logged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from lana_ray import registry
from lana_ray.cluster import connection as cluster
from lana_ray.cluster.claims import Ask, Claim, node_labels, selector, share, threads
from lana_ray.cluster.sweeps import Sweep, Trial, each_of, log_uniform, run_sweep
from lana_ray.config import Config, SearchConfig
from lana_ray.costs.work import network_work
from lana_ray.monitoring.progress import progress, say
from lana_ray.networks.teachers import Teacher
from lana_ray.predictors.fits import Fit
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.method import method_version
from lana_ray.search.bilevel import Batch, Batches
from lana_ray.spaces.space import Architecture, StudentSpace
from lana_ray.stages.meter import readings, teacher_cost
from lana_ray.stages.sample import SESSIONS, Sampled, judge
from lana_ray.stages.track import run_of
from lana_ray.workspace import Workspace

FILE = "search.parquet"
EPOCHS = 20
"""That a search is divided into: points of its trajectory."""
_OF_THE_SWEEP = ("concurrency", "methods", "trials", "lambdas", "grid", "seeds", "aim")
"""Settings that say which trials there are: a trial itself depends on what it is given alone."""
_OF_FULL_TRAINING = {"drop_path", "auxiliary_weight"}
"""Settings of ``search.cells`` that no trial depends on."""
_COSTS = ("teacher_cost", "predicted_cost", "measured_cost")
_FIGURES = ("teacher_ms", "predicted_ms", "measured_ms", "iqr_ms", "accuracy", "loss", "search_s", "begun")
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("target", "method", "key", "architecture", "cost")]
    + [("choices", pa.list_(pa.int64())), ("collapsed", pa.bool_()), ("seed", pa.int64())]
    + [(name, pa.float64()) for name in ("lambda", "budget", *_COSTS, *_FIGURES)]
)


def sweep(
    workspace: Workspace,
    sampled: Sampled,
    method: str,
    trial: Trial,
    setup: Any,
    space: Mapping[str, Any],
    identity: Any,
) -> list[dict[str, Any]]:
    """Runs or resumes the trials of a method on a target; rows of ``search.parquet``.

    Args:
        trial: of the setup.
        space: of the settings, see ``Sweep``.
        identity: everything that trials depend on beside teacher, target and the search's settings.
    """
    config, target = workspace.config, sampled.target.name
    no_matter: dict[str, Any] = dict.fromkeys(_OF_THE_SWEEP, True) | {"cells": _OF_FULL_TRAINING}
    key = fingerprint(
        workspace.teacher_key,
        workspace.data.fingerprint,
        sampled.target_key,
        config.search.model_dump(exclude=no_matter, mode="json"),
        config.run.seed,
        identity,
        method_version("search.layerwise", "search.bilevel", "spaces.cells.supernet"),
    )
    claim = trial_claim(config)
    planned = Sweep(
        name=f"{method}-{target}-{key}",
        space=space,
        objectives={"accuracy": "max", "measured_cost": "min"},
        trials=config.search.trials,
        first=_budgets_asked(config, sampled, space),
        concurrency=config.search.concurrency,
        resources={"CPU": float(claim.cpus), **({"GPU": claim.gpus} if claim.gpus else {})},
        labels=selector(cluster.nodes(gone=True), claim, node_labels(config)),
        seed=config.run.seed,
    )
    known = {
        "target": target,
        "method": method,
        "cost": config.search.cost,
        "teacher_cost": teacher_cost(workspace, sampled),
        "teacher_ms": sampled.teacher_ms,
    }
    with progress(f"search {target} {method}", planned.size) as show:
        found = run_sweep(planned, trial, [setup], workspace.storage, show)
    return [{**row, **known, "key": fingerprint(planned.name, row["settings"])} for row in found]


def _budgets_asked(config: Config, sampled: Sampled, space: Mapping[str, Any]) -> list[dict[str, float]]:
    """The run's own budgets of latency less ``select.margin``, where budgets are drawn and can be met."""
    drawn = space.get("budget")
    if drawn is None or config.search.metered:
        return []
    budgets_ms = [budget.limit(sampled.teacher_ms) for budget in config.budgets.latency_ms]
    limits_ms = [(1 - config.select.margin) * budget_ms for budget_ms in budgets_ms]
    return [{"budget": ms} for ms in limits_ms if drawn.lower <= ms <= drawn.upper]


def finish(workspace: Workspace, teacher: Teacher, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes ``search.parquet`` and logs every trial in MLflow; the rows with all columns."""
    flat = [{**row["settings"], **row} for row in rows]  # columns that are not in the schema stay behind
    table = pa.Table.from_pylist(flat, schema=_SCHEMA)
    workspace.storage.write_table(FILE, table, fingerprint([row["key"] for row in rows]))
    found = list(table.to_pylist())
    uri = registry.default_tracking_uri(workspace.config.registry, workspace.storage)
    prefix = workspace.config.registry.name or teacher.name
    parent = run_of(workspace, teacher)
    new = registry.log_trials(found, parent=parent, tracking_uri=uri, prefix=prefix)
    say(f"search: {new} trials logged in MLflow, {len(found) - new} were there")
    return found


def learnt(workspace: Workspace, found: Fit, what: str) -> LatencyPredictor:
    """A target's predictor of what is searched for, after a line on how good it is.

    Args:
        what: it predicts for.
    """
    quality = found.quality
    say(
        f"search: {found.target}: {workspace.config.search.cost} of {what} predicted within "
        f"{100 * quality.median_error:.1f} % in the median, rank correlation {quality.spearman:.3f}, "
        f"from {found.curve[-1][0]} of them"
    )
    return LatencyPredictor.from_bytes(workspace.storage.read_bytes(found.file), found.file)


def judged(
    workspace: Workspace,
    sampled: Sampled,
    space: StudentSpace,
    architecture: Architecture,
) -> dict[str, Any]:
    """What an architecture is, how long it takes on a target, and what it costs there.

    The cost is that of ``search.cost``; what could not be measured is NaN.
    """
    name = sampled.target.name
    asked = {name: {architecture: network_work(space, architecture)}}
    sample = judge(workspace, asked, {name: sampled}, SESSIONS, "search")[name, architecture].sample
    cost = sample.median_ms
    if workspace.config.search.metered:
        found = readings(workspace, space, {name: sampled}, {name: [architecture]}, "search")
        cost = found[name].get(architecture, math.nan)
    return {
        "architecture": space.label(architecture),
        "choices": list(architecture),
        "measured_cost": cost,
        "measured_ms": sample.median_ms,
        "iqr_ms": sample.iqr_ms,
    }


def lambdas(config: SearchConfig) -> dict[str, Any]:
    """λ as it is swept: drawn on a log scale, or each one of the grid with each seed."""
    if config.grid is None:
        return {"lambda": log_uniform(*config.lambdas)}
    return {
        "lambda": each_of(config.grid),
        "seed": each_of(range(config.seeds)),
    }


def seed_of(config: Config, settings: Mapping[str, float]) -> int:
    """Of everything that a trial draws at random."""
    return config.run.seed + int(settings.get("seed", 0))


def batches(workspace: Workspace, split: str, steps: int, seed: int) -> Batches:
    """Images for epochs of so many steps."""
    size = workspace.config.search.batch_size

    def of_epoch(epoch: int, start: int) -> Iterator[Batch]:
        return workspace.data.endless(split, batch_size=size, start_step=epoch * steps + start, seed=seed)

    return of_epoch


def trial_claim(config: Config) -> Claim:
    """What a trial takes of its node: those that run at a time share the nodes that train."""
    settings = config.search
    ask = Ask(
        most=min(settings.concurrency, max(settings.trials, 1)),
        gpus=config.ray.gpus_per_worker,
        cpus=config.ray.cpus_per_worker,
    )
    return share(ask, cluster.nodes(gone=True))[1]


def use_threads(config: Config) -> None:
    """Lets PyTorch use the CPUs of a trial, in its process."""
    torch.set_num_threads(threads(trial_claim(config).cpus))
