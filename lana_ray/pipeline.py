"""The pipelines as tables of stages, and one loop that runs them.

Each stage stores its results in the run directory and reuses those that are still valid. ``RunState`` passes
results on to later stages of the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lana_ray import registry
from lana_ray.cluster.agreement import NodeCheck
from lana_ray.cluster.connection import connect
from lana_ray.config import Config, load_config
from lana_ray.costs.registry import COUNTED
from lana_ray.measurement.latencies import LATENCY, Sampled, samplers
from lana_ray.measurement.readings import check_meters
from lana_ray.monitoring.progress import say
from lana_ray.networks.teachers import Teacher
from lana_ray.predictors.fits import Fit
from lana_ray.preflight import settings
from lana_ray.preflight.planned import Planned
from lana_ray.run_dir import layout, lease
from lana_ray.run_dir.settings import claim
from lana_ray.run_dir.summary import SearchSummary, Summary
from lana_ray.run_dir.tables import TrialRow
from lana_ray.selection.loop import Loop, World, close_loop
from lana_ray.spaces.cells import CellStudents
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace
from lana_ray.stages import distill, finetune, fit, profile, register, sample, score, search, select, teacher
from lana_ray.stages.finetune import FinishedStudent
from lana_ray.stages.sample import Sampling
from lana_ray.tracking import Tracking, run_directory, tracking
from lana_ray.trials.choose import choices_among, world_of_trials
from lana_ray.trials.prepare import prepare_cells, prepare_layers
from lana_ray.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The results of a run."""

    dir: str
    """The run directory, with ``summary.json`` and ``report.html``."""
    summary: dict[str, Any]
    """Content of ``summary.json``, see ``run_dir.summary.Summary``."""

    @property
    def results(self) -> list[dict[str, Any]]:
        """One entry per target and budget, see ``run_dir.summary.Result``."""
        return list(self.summary["results"])


@dataclass(kw_only=True)
class RunState:
    """Results of one invocation so far; comments name the stage that sets each field."""

    workspace: Workspace
    tracked: Tracking
    tracks: bool
    """Whether stages are logged in MLflow."""
    teacher: Teacher = field(init=False)  # teacher
    sampling: Sampling = field(init=False)  # sample
    scores: Sequence[NDArray[np.float64]] = field(init=False)  # score
    trials: list[TrialRow] = field(init=False)  # search
    space: StudentSpace = field(init=False)  # select, or search over cells
    sampled: Mapping[str, Sampled] = field(init=False)  # select, or search over cells
    world: World = field(init=False)  # select, or search over cells
    loop: Loop = field(init=False)  # select, or search over cells; then finetune
    finished: list[FinishedStudent] = field(init=False)  # finetune
    summary: Summary = field(init=False)  # register
    fits: list[Fit] = field(init=False)  # fit
    plots: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # report
    files: tuple[str, ...] = ()
    """Files of the run directory to keep with the run in MLflow."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    run: Callable[[RunState], None]
    plan: Callable[[Planned], Sequence[str]]
    """Describes the work in rows of text, without doing it."""
    on_cluster: bool = True
    """Whether it needs Ray."""


def _teacher(state: RunState) -> None:
    metered = [cost for cost in state.workspace.config.budgets.bounds if cost not in COUNTED]
    check_meters(state.workspace, {cost: f"budgets.{cost}" for cost in metered})
    state.teacher = teacher.run(state.workspace)
    if state.tracks:
        state.tracked.begin(state.teacher)


def _sample(state: RunState) -> None:
    state.sampling = sample.run(state.workspace, list(state.workspace.config.budgets.bounds))
    select.check(state.workspace, state.sampling)


def _sample_to_search(state: RunState) -> None:
    config = state.workspace.config
    costs = dict.fromkeys([*config.budgets.bounds, config.search.cost])
    state.sampling = sample.run(state.workspace, [cost for cost in costs if cost != LATENCY])


def _score(state: RunState) -> None:
    reasons = sample.left_out(state.workspace.space, state.sampling)
    state.scores = score.run(state.workspace, state.sampling.considered, reasons)


def _rank(state: RunState) -> None:
    _score(state)
    score.rank(state.workspace, state.scores)


def _select(state: RunState) -> None:
    state.space, state.sampled = state.workspace.space, state.sampling.targets
    state.world = select.world_of(state.workspace, state.sampling, state.scores)
    state.loop = select.run(state.workspace, state.sampling, state.world)


def _finetune(state: RunState) -> None:
    state.finished, state.loop = finetune.run(
        state.workspace, state.space, state.sampled, state.loop, state.world
    )


def _finetune_selected(state: RunState) -> None:
    _finetune(state)
    select.write(state.workspace, state.sampling, state.loop)


def _register(state: RunState) -> None:
    workspace, evidence = state.workspace, {"costs.parquet": layout.costs("{target}")}
    results = register.run(workspace, state.teacher, state.finished, evidence)
    state.summary = register.write_summary(
        workspace, state.teacher, state.sampling, state.loop, results, state.tracked.seconds
    )
    state.files = (layout.SUMMARY,)


def _report(state: RunState) -> None:
    from lana_ray.report.page import write_page  # imports matplotlib, which only this stage needs

    state.plots = write_page(state.workspace.storage, state.workspace.config.ray.node_price_per_hour)
    state.files = (layout.SUMMARY, layout.REPORT)


def _fit(state: RunState) -> None:
    state.fits = fit.run(state.workspace, state.sampling)


def _metered_teacher(state: RunState) -> None:
    cost = state.workspace.config.search.cost
    if cost != LATENCY:
        check_meters(state.workspace, {cost: f"search.cost {cost}"})
    _teacher(state)


def _search_layers(state: RunState) -> None:
    workspace, sampling = state.workspace, state.sampling
    scores = select.allowed_scores(workspace, state.scores)
    prepared = prepare_layers(workspace, sampling.targets, sampling.tables, scores)
    state.trials = search.run(workspace, state.teacher, prepared)


def _search_cells(state: RunState) -> None:
    workspace, prepared = state.workspace, prepare_cells(state.workspace)
    state.trials = search.run(workspace, state.teacher, prepared)
    state.space = workspace.cells
    state.sampled = {one.setup.sampled.target.name: one.setup.sampled for one in prepared}
    state.world = world_of_trials(workspace, state.space, state.sampled, state.trials)
    state.loop = close_loop(choices_among(workspace, state.sampled), state.world, rounds=1)
    for choice in state.loop.choices:
        if choice.unmet:
            say(f"search: {choice.unmet}")


def _register_cells(state: RunState) -> None:
    evidence = {layout.TRIALS: layout.TRIALS}
    results = register.run(state.workspace, state.teacher, state.finished, evidence)
    unmet = tuple(choice.unmet for choice in state.loop.choices if choice.unmet)
    summary = SearchSummary(teacher=state.teacher.name, results=tuple(results), unmet=unmet)
    summary.write(state.workspace.storage)


RUN = (
    Stage("teacher", _teacher, teacher.plan),
    Stage("sample", _sample, sample.plan),
    Stage("distill", lambda state: distill.run(state.workspace, state.sampling), distill.plan),
    Stage("score", _rank, score.plan),
    Stage("select", _select, select.plan),
    Stage("finetune", _finetune_selected, finetune.plan),
    Stage("profile", lambda state: profile.run(state.workspace, state.finished), profile.plan),
    Stage("register", _register, register.plan, on_cluster=False),
    Stage(
        "report",
        _report,
        lambda planned: [f"{layout.SUMMARY} and {layout.REPORT} in {planned.config.run.dir}"],
        on_cluster=False,
    ),
)
"""Stages of ``lana-ray run``."""
FIT = (*RUN[:2], Stage("fit", _fit, fit.plan))
"""Stages of ``lana-ray fit``."""
SEARCH = {
    LayerwiseSpace.name: (
        Stage("teacher", _metered_teacher, teacher.plan),
        Stage("sample", _sample_to_search, sample.plan),
        RUN[2],
        Stage("score", _score, score.plan),
        Stage("search", _search_layers, search.plan_layers),
    ),
    CellStudents.name: (
        Stage("teacher", _metered_teacher, teacher.plan),
        Stage("search", _search_cells, search.plan_cells),
        Stage("finetune", _finetune, finetune.plan),
        Stage("register", _register_cells, register.plan, on_cluster=False),
    ),
}
"""Stages of ``lana-ray search`` by space."""
STAGES = tuple(stage.name for stage in RUN)


def accelerate(config: Config | str | Path | dict[str, Any]) -> RunResult:
    """Accelerates a network for every target and budget, as ``lana-ray run`` does.

    Args:
        config: a YAML file, its content as a dictionary, or a ``Config``.

    Raises:
        UserError: something is wrong with the configuration, the data, the weights or the cluster.
    """
    loaded = load_config(config)
    summary = run(loaded, until="report")
    assert summary is not None
    return RunResult(dir=loaded.run.dir, summary=summary.as_dict())


def run(config: Config, until: str) -> Summary | None:
    """Runs the stages up to and including ``until``; returns the summary if students are registered."""
    stages = RUN[: STAGES.index(until) + 1]
    if STAGES.index(until) < STAGES.index("register"):
        _run(config, stages)
        return None
    unfinished = [layout.network_states(LayerwiseSpace.name), layout.CANDIDATE_STATES]
    return _run(config, stages, unfinished=unfinished).summary


def fit_predictors(config: Config) -> list[Fit]:
    """Samples every target and fits a latency predictor to its measurements."""
    return _run(config, FIT).fits


def search_architectures(config: Config) -> list[TrialRow]:
    """Searches cells or scored candidates on every target; returns a row per trial."""
    space, states = LayerwiseSpace.name, layout.CANDIDATE_STATES
    if config.search.cells is not None:
        space, states = CellStudents.name, layout.network_states(CellStudents.name)
    return _run(config, SEARCH[space], unfinished=[states]).trials


def _run(config: Config, stages: Sequence[Stage], unfinished: Sequence[str] = ()) -> RunState:
    """Runs stages in order; before each, checks the lease and that all nodes share the run directory.

    Args:
        unfinished: folders of training states to remove at the end of stages that are logged in MLflow;
            without any, nothing is logged.
    """
    tracks = bool(unfinished)
    with _opened(config) as (workspace, check_lease):
        if tracks:  # reports a missing registry before days of work
            registry.default_tracking_uri(config.registry, workspace.storage)
        nodes = NodeCheck(config.run.dir)
        with tracking(workspace) as tracked:
            state = RunState(workspace=workspace, tracked=tracked, tracks=tracks)

            def each(some: Sequence[Stage]) -> None:
                for stage in some:
                    check_lease()
                    if stage.on_cluster:
                        nodes.look()
                    with tracked.stage(stage.name):
                        stage.run(state)
                        workspace.samples.compact()

            with connect(config.ray), samplers(workspace):
                each([stage for stage in stages if stage.on_cluster])
            each([stage for stage in stages if not stage.on_cluster])
            if tracks:
                # Only a run that wrote its report has plots, and with them costs of its targets.
                sampled, tables = (state.sampled, state.loop.tables) if state.plots else ({}, {})
                tracked.finish(sampled, tables, state.plots, state.files)
        if tracks:
            _remove_leftovers(workspace, state.teacher, unfinished)
    return state


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Workspace, Callable[[], None]]]:
    """Yields the workspace, whose run directory is leased, and a check that the lease still holds.

    Mistakes are reported here, before a cluster is started.
    """
    settings.check_names(config)
    workspace = Workspace(config)
    workspace.storage.check_writable()
    with lease.held(workspace.storage) as check:
        claim(workspace.storage, config)
        _say_splits(workspace)
        settings.check_batches(config, workspace.data.sizes)
        teacher.load_checked(workspace)
        yield workspace, check


def _remove_leftovers(workspace: Workspace, made_of: Teacher, states: Sequence[str]) -> None:
    """Removes half-written files and the training states in folders; ends abandoned uploads in MLflow."""
    storage = workspace.storage
    files = [*storage.temporaries(), *(file for folder in states for file in storage.list(folder))]
    for file in files:
        storage.remove(file)
    uri = registry.default_tracking_uri(workspace.config.registry, storage)
    prefix = workspace.config.registry.name or made_of.name
    ended = registry.end_abandoned(run_directory(workspace), tracking_uri=uri, prefix=prefix)
    if files or ended:
        say(f"removed {len(files)} leftover files, ended {ended} abandoned uploads in MLflow")


def _say_splits(workspace: Workspace) -> None:
    sizes = workspace.data.sizes
    say(
        f"data: {sizes['train']} images to train with, {sizes['score']} to score and choose, "
        f"{sizes['validation']} to validate, {sizes['test']} to test; {workspace.data.num_classes} classes"
    )
    for note in (*workspace.data.notes, *workspace.data.check()):
        say(f"data: {note}")
