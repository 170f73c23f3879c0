"""Stage of ``lana-ray search``: sweeps of search methods on every target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lana_ray import registry
from lana_ray.cluster.claims import node_labels, selector
from lana_ray.cluster.connection import nodes
from lana_ray.cluster.sweeps import Sweep, each_of, log_uniform, run_sweep, uniform
from lana_ray.costs.table import CostTable
from lana_ray.measurement.latencies import LATENCY
from lana_ray.measurement.readings import teacher_cost
from lana_ray.monitoring.progress import progress, say
from lana_ray.networks.teachers import Teacher
from lana_ray.preflight.planned import Planned
from lana_ray.run_dir import layout
from lana_ray.run_dir.code_version import method_version
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.tables import TRIALS, TrialRow
from lana_ray.spaces.cells import CellSupernet
from lana_ray.tracking import run_of
from lana_ray.trials.methods import METHODS, SearchMethod
from lana_ray.trials.prepare import Prepared
from lana_ray.trials.problem import EPOCHS
from lana_ray.trials.trial import TRIAL, trial_claim
from lana_ray.workspace import Workspace, cell_space

_OF_THE_SWEEP = ("concurrency", "methods", "trials", "lambdas", "grid", "seeds", "aim")
"""Settings that define the list of trials; a trial depends only on its own settings."""
_FIGURES = (
    *("predicted_cost", "measured_cost", "predicted_ms", "measured_ms", "iqr_ms"),
    *("accuracy", "loss", "search_s", "begun"),
)
"""Fields of ``TrialRow`` that have the same name in a trial's results."""
_OF_FULL_TRAINING = {"drop_path", "auxiliary_weight"}
"""Settings of ``search.cells`` that affect no trial."""


def run(workspace: Workspace, teacher: Teacher, prepared: Sequence[Prepared]) -> list[TrialRow]:
    """Runs or resumes all trials on prepared targets; writes ``search.parquet`` and logs trials in MLflow.

    λ of the differentiable search and budgets of the integer program are swept. The network of every trial is
    measured on its target, and its accuracy is that on the validation split.
    """
    rows = []
    for ready in prepared:
        for name in workspace.config.search.methods:
            method = METHODS[name]
            if method.needs_table and not isinstance(ready.setup.model, CostTable):
                continue  # documented with ``search.methods``
            rows += _sweep(workspace, ready, method)
    TRIALS.write(workspace.storage, layout.TRIALS, rows, fingerprint([row.key for row in rows]))
    uri = registry.default_tracking_uri(workspace.config.registry, workspace.storage)
    prefix = workspace.config.registry.name or teacher.name
    parent = run_of(workspace, teacher)
    new = registry.log_trials(rows, parent=parent, tracking_uri=uri, prefix=prefix)
    say(f"search: {new} trials logged in MLflow, {len(rows) - new} logged before")
    return rows


def _sweep(workspace: Workspace, ready: Prepared, method: SearchMethod) -> list[TrialRow]:
    """The trials of one method on one target."""
    config, setup = workspace.config, ready.setup
    sampled, target = setup.sampled, setup.sampled.target.name
    no_matter: dict[str, Any] = dict.fromkeys(_OF_THE_SWEEP, True) | {"cells": _OF_FULL_TRAINING}
    key = fingerprint(
        workspace.teacher_key,
        workspace.data.fingerprint,
        sampled.target_key,
        config.search.model_dump(exclude=no_matter, mode="json"),
        config.run.seed,
        ready.identity,
        method_version("trials.trial"),
    )
    claim = trial_claim(config)
    space = _space(ready, method)
    planned = Sweep(
        name=f"{method.name}-{target}-{key}",
        space=space,
        objectives={"accuracy": "max", "measured_cost": "min"},
        trials=config.search.trials,
        first=_budgets_asked(ready, space),
        concurrency=config.search.concurrency,
        resources={"CPU": float(claim.cpus), **({"GPU": claim.gpus} if claim.gpus else {})},
        labels=selector(nodes(gone=True), claim, node_labels(config)),
        seed=config.run.seed,
    )
    of_teacher = teacher_cost(workspace, config.search.cost, sampled)
    with progress(f"search {target} {method.name}", planned.size) as show:
        trials = run_sweep(planned, TRIAL, [setup, method.name], workspace.storage, show)
    return [_row(planned.name, ready, method, of_teacher, trial) for trial in trials]


def _row(
    sweep: str, ready: Prepared, method: SearchMethod, teacher_cost: float, trial: Mapping[str, Any]
) -> TrialRow:
    settings, sampled = trial["settings"], ready.setup.sampled
    return TrialRow(
        target=sampled.target.name,
        space=sampled.space,
        method=method.name,
        key=fingerprint(sweep, settings),
        architecture=trial["architecture"],
        choices=tuple(trial["choices"]),
        cost=ready.setup.of.cost,
        multiplier=settings.get("lambda"),
        budget=settings.get("budget"),
        seed=settings.get("seed"),
        collapsed=trial["collapsed"],
        teacher_cost=teacher_cost,
        teacher_ms=sampled.teacher_ms,
        **{name: trial[name] for name in _FIGURES},
    )


def _space(ready: Prepared, method: SearchMethod) -> dict[str, Any]:
    """The swept settings: λ drawn on a log scale, λ and seeds of the grid, or budgets."""
    config = ready.setup.config.search
    if not method.takes_price or config.aim == "budget":
        return {"budget": uniform(*ready.budgets)}
    if config.grid is None:
        return {"lambda": log_uniform(*config.lambdas)}
    return {"lambda": each_of(config.grid), "seed": each_of(range(config.seeds))}


def _budgets_asked(ready: Prepared, space: Mapping[str, Any]) -> list[dict[str, float]]:
    """The configured budgets less ``select.margin``, if budgets are swept and these are in range."""
    if "budget" not in space:
        return []
    config, of = ready.setup.config, ready.setup.of
    budgets = config.budgets
    limits = [budgets.bounds[of.cost].limit(ready.teacher)] if of.cost in budgets.bounds else []
    if of.cost == LATENCY:
        batch_size = ready.setup.sampled.target.batch_size
        limits = [budget.limit_ms(ready.teacher, batch_size) for budget in budgets.latencies]
    limits = [(1 - config.select.margin) * limit for limit in limits]
    low, high = ready.budgets
    return [{"budget": limit} for limit in limits if low <= limit <= high]


def plan_layers(planned: Planned) -> list[str]:
    """The sweeps over distilled candidates."""
    config = planned.config.search
    rows = []
    for name in config.methods:
        method = METHODS[name]
        trials, setting = _sweep_in_words(planned, method.takes_price)
        size = f", {_steps(planned)}" if method.takes_price else ""
        rows.append(f"on each target {trials} trials of the {method.title}, {setting}{size}")
    return [*rows, f"{planned.space.size:.2g} architectures to search"]


def plan_cells(planned: Planned) -> list[str]:
    """The cells to sample, and the sweep over cells."""
    config, search = planned.config, planned.config.search
    options = search.cells
    assert options is not None
    cells = cell_space(config, planned.classes)
    supernet = CellSupernet(cell_space(config, planned.classes, of_supernet=True), partial=options.partial)
    parameters = sum(p.numel() for p in supernet.weight_parameters())
    rows = [
        f"cells of {options.space}: {cells.size:.2g} architectures; the supernet has "
        f"{parameters / 1e6:.2g} million parameters"
    ]
    networks = min(options.samples, cells.size)
    chosen = f" and {options.active} chosen" if options.active else ""
    for target in config.targets:
        minutes = (networks + options.active) * target.measure.time_limit_s / 60
        timing = f"at most {minutes:.0f} minutes of timing"
        took = timing if search.cost == LATENCY else f"their {search.cost} read"
        rows.append(f"{target.name}: {networks} random{chosen} cells, {took}")
    trials, setting = _sweep_in_words(planned, takes_price=True)
    return [
        *rows,
        f"on each target {trials} trials, {setting}, {_steps(planned)}; each trial's network is trained for "
        f"{options.trial_epochs:g} epochs, the best for each budget for {config.finetune.epochs:g}",
    ]


def _steps(planned: Planned) -> str:
    search = planned.config.search
    steps = EPOCHS * max(1, search.steps // EPOCHS)
    return f"{steps} steps of {search.batch_size} images"


def _sweep_in_words(planned: Planned, takes_price: bool) -> tuple[int, str]:
    """The number of trials on a target, and the settings of each."""
    search = planned.config.search
    if not takes_price or search.aim == "budget":
        return search.trials, "each with a drawn budget"
    if search.grid is None:
        return search.trials, "each with a drawn λ from {:g} to {:g}".format(*search.lambdas)
    values = ", ".join(f"{value:g}" for value in search.grid)
    seeds = f"{search.seeds} seed{'s'[: search.seeds > 1]}"
    return len(search.grid) * search.seeds, f"λ of {values} with {seeds} each"
