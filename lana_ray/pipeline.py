"""The stages as tables, and one loop that runs them.

Each stage keeps what it makes in the run directory and reuses what still fits; what later stages read of it
in the same process is a field of ``Made``.
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
from lana_ray.deploy import runtimes
from lana_ray.measurement.latencies import LATENCY, Sampled
from lana_ray.measurement.readings import check_meters
from lana_ray.monitoring.progress import say
from lana_ray.networks.teachers import Teacher
from lana_ray.predictors.fits import Fit
from lana_ray.preflight import settings
from lana_ray.preflight.planned import Planned
from lana_ray.run_dir import layout, lease
from lana_ray.run_dir.claim import claim
from lana_ray.run_dir.summary import Result, SearchSummary, Summary
from lana_ray.run_dir.tables import TrialRow
from lana_ray.selection.loop import Loop, World, close_loop
from lana_ray.spaces.cells import CellStudents
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace
from lana_ray.stages import distill, finetune, fit, register, sample, score, search, select, teacher
from lana_ray.stages.finetune import Finished
from lana_ray.stages.sample import Sampling
from lana_ray.tracking import Tracking, run_directory, tracking
from lana_ray.trials.choose import choices_among, world_of_trials
from lana_ray.trials.prepare import prepare_cells, prepare_layers
from lana_ray.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to."""

    dir: str
    """The run directory, with ``summary.json`` and ``report.html``."""
    summary: dict[str, Any]
    """Content of ``summary.json``, see ``run_dir.summary.Summary``."""

    @property
    def results(self) -> list[dict[str, Any]]:
        """One entry per target and budget, see ``run_dir.summary.Result``."""
        return list(self.summary["results"])


@dataclass(kw_only=True)
class Made:
    """What the stages of one invocation have made so far; the comment names the stage."""

    workspace: Workspace
    tracked: Tracking
    tracks: bool
    """Whether MLflow is told of the stages."""
    teacher: Teacher = field(init=False)  # teacher
    sampling: Sampling = field(init=False)  # sample
    scores: Sequence[NDArray[np.float64]] = field(init=False)  # score
    trials: list[TrialRow] = field(init=False)  # search
    space: StudentSpace = field(init=False)  # select, or search over cells: of the students to finish
    sampled: Mapping[str, Sampled] = field(init=False)  # the same
    world: World = field(init=False)  # the same
    loop: Loop = field(init=False)  # the same, then finetune
    finished: list[Finished] = field(init=False)  # finetune
    results: list[Result] = field(init=False)  # register
    summary: Summary = field(init=False)  # register
    fits: list[Fit] = field(init=False)  # fit
    plots: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # report
    files: tuple[str, ...] = ()
    """Files of the run directory that MLflow keeps with the run."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    run: Callable[[Made], None]
    plan: Callable[[Planned], Sequence[str]]
    """What it would do, in one row of text for each part; runs nothing."""
    on_cluster: bool = True
    """Whether it needs Ray."""


def _teacher(made: Made) -> None:
    metered = [cost for cost in made.workspace.config.budgets.bounds if cost not in COUNTED]
    check_meters(made.workspace, {cost: f"budgets.{cost}" for cost in metered})
    made.teacher = teacher.run(made.workspace)
    if made.tracks:
        made.tracked.begin(made.teacher)


def _sample(made: Made) -> None:
    made.sampling = sample.run(made.workspace, list(made.workspace.config.budgets.bounds))
    select.check(made.workspace, made.sampling)


def _sample_to_search(made: Made) -> None:
    config = made.workspace.config
    costs = dict.fromkeys([*config.budgets.bounds, config.search.cost])
    made.sampling = sample.run(made.workspace, [cost for cost in costs if cost != LATENCY])


def _distill(made: Made) -> None:
    distill.run(made.workspace, made.sampling)


def _score(made: Made) -> None:
    workspace, sampling = made.workspace, made.sampling
    reasons = sample.left_out(workspace.space, sampling)
    made.scores = score.run(workspace, sampling.considered, reasons)


def _rank(made: Made) -> None:
    _score(made)
    score.rank(made.workspace, made.scores)


def _select(made: Made) -> None:
    made.space, made.sampled = made.workspace.space, made.sampling.targets
    made.world = select.world_of(made.workspace, made.sampling, made.scores)
    made.loop = select.run(made.workspace, made.sampling, made.world)


def _finetune(made: Made) -> None:
    made.finished, made.loop = finetune.run(made.workspace, made.space, made.sampled, made.loop, made.world)


def _finetune_selected(made: Made) -> None:
    _finetune(made)
    select.write(made.workspace, made.sampling, made.loop)


def _register(made: Made) -> None:
    workspace = made.workspace
    evidence = {"costs.parquet": layout.costs("{target}")}
    made.results = register.run(workspace, made.teacher, made.finished, evidence)
    seconds = made.tracked.seconds
    made.summary = register.write_summary(
        workspace, made.teacher, made.sampling, made.loop, made.results, seconds
    )
    made.files = (layout.SUMMARY,)


def _report(made: Made) -> None:
    from lana_ray.report import write_page  # matplotlib, only where a page is made

    made.plots = write_page(made.workspace.storage, made.workspace.config.ray.node_price_per_hour)
    made.files = (layout.SUMMARY, layout.REPORT)


def _plan_report(planned: Planned) -> list[str]:
    return [f"{layout.SUMMARY} and {layout.REPORT} in {planned.config.run.dir}"]


def _fit(made: Made) -> None:
    made.fits = fit.run(made.workspace, made.sampling)


def _metered_teacher(made: Made) -> None:
    cost = made.workspace.config.search.cost
    if cost != LATENCY:
        check_meters(made.workspace, {cost: f"search.cost {cost}"})
    _teacher(made)


def _search_layers(made: Made) -> None:
    workspace, sampling = made.workspace, made.sampling
    scores = select.allowed_scores(workspace, made.scores)
    prepared = prepare_layers(workspace, sampling.targets, sampling.tables, scores)
    made.trials = search.run(workspace, made.teacher, prepared)


def _search_cells(made: Made) -> None:
    workspace, prepared = made.workspace, prepare_cells(made.workspace)
    made.trials = search.run(workspace, made.teacher, prepared)
    made.space = workspace.cells
    made.sampled = {one.setup.sampled.target.name: one.setup.sampled for one in prepared}
    made.world = world_of_trials(workspace, made.space, made.sampled, made.trials)
    made.loop = close_loop(choices_among(workspace, made.sampled), made.world, rounds=1)
    for choice in made.loop.choices:
        if choice.unmet:
            say(f"search: {choice.unmet}")


def _register_cells(made: Made) -> None:
    evidence = {layout.TRIALS: layout.TRIALS}
    made.results = register.run(made.workspace, made.teacher, made.finished, evidence)
    unmet = tuple(choice.unmet for choice in made.loop.choices if choice.unmet)
    summary = SearchSummary(teacher=made.teacher.name, results=tuple(made.results), unmet=unmet)
    summary.write(made.workspace.storage)


RUN = (
    Stage("teacher", _teacher, teacher.plan),
    Stage("sample", _sample, sample.plan),
    Stage("distill", _distill, distill.plan),
    Stage("score", _rank, score.plan),
    Stage("select", _select, select.plan),
    Stage("finetune", _finetune_selected, finetune.plan),
    Stage("register", _register, register.plan, on_cluster=False),
    Stage("report", _report, _plan_report, on_cluster=False),
)
"""``lana-ray run``, and each of its stages with those before it."""
FIT = (*RUN[:2], Stage("fit", _fit, fit.plan))
"""``lana-ray fit``."""
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
"""``lana-ray search``, by the space that is searched."""
STAGES = tuple(stage.name for stage in RUN)
_TRACKED_FROM = "register"


def accelerate(config: Config | str | Path | dict[str, Any]) -> RunResult:
    """Accelerates a network for every target and budget: what ``lana-ray run`` does.

    Args:
        config: a YAML file, its content as a dictionary, or a ``Config``.

    Raises:
        UserError: a mistake in the configuration, the data, the weights or the cluster, in one line.
    """
    loaded = load_config(config)
    summary = run(loaded, until="report")
    assert summary is not None
    return RunResult(dir=loaded.run.dir, summary=summary.as_dict())


def run(config: Config, until: str) -> Summary | None:
    """Runs the stages up to ``until``; returns the summary where students are registered."""
    count = STAGES.index(until) + 1
    registers = count > STAGES.index(_TRACKED_FROM)
    unfinished = [layout.network_states(LayerwiseSpace.name), layout.CANDIDATE_STATES]
    made = _run(config, RUN[:count], tracks=registers, unfinished=unfinished if registers else None)
    return made.summary if registers else None


def fit_predictors(config: Config) -> list[Fit]:
    """Samples every target and fits a latency predictor to what was measured there."""
    return _run(config, FIT, tracks=False).fits


def search_architectures(config: Config) -> list[TrialRow]:
    """Sweeps searches on every target, over cells or over the scored candidates; one row per trial."""
    space = LayerwiseSpace.name if config.search.cells is None else CellStudents.name
    states = layout.CANDIDATE_STATES if config.search.cells is None else layout.network_states(space)
    return _run(config, SEARCH[space], tracks=True, unfinished=[states]).trials


def _run(
    config: Config, stages: Sequence[Stage], *, tracks: bool, unfinished: Sequence[str] | None = None
) -> Made:
    """Runs stages one after another, each while the run directory is this driver's and every node's.

    Args:
        tracks: tell MLflow of them.
        unfinished: folders of states that nothing will go on with once all stages have ended; None leaves
            whatever lies there.
    """
    with _opened(config) as (workspace, check_lease):
        if tracks:  # what it would miss there is told before days of work
            registry.default_tracking_uri(config.registry, workspace.storage)
        nodes = NodeCheck(config.run.dir)
        with tracking(workspace) as tracked:
            made = Made(workspace=workspace, tracked=tracked, tracks=tracks)

            def each(some: Sequence[Stage]) -> None:
                for stage in some:
                    check_lease()
                    if stage.on_cluster:
                        nodes.look()
                    with tracked.stage(stage.name):
                        stage.run(made)

            with connect(config.ray):
                each([stage for stage in stages if stage.on_cluster])
            each([stage for stage in stages if not stage.on_cluster])
            if tracks:
                is_run = bool(made.plots)
                tables = made.loop.tables if is_run else {}
                tracked.finish(made.sampled if is_run else {}, tables, made.plots, made.files)
        if unfinished is not None:
            _remove_leftovers(workspace, made.teacher, unfinished)
    return made


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Workspace, Callable[[], None]]]:
    """The run's workspace, which nobody else works in meanwhile, and a check that this is still so.

    Mistakes are told before a cluster is started.
    """
    for target in config.targets:
        runtimes.check(target)
    settings.check_pool(config)
    workspace = Workspace(config)
    workspace.storage.check_writable()
    with lease.held(workspace.storage) as check:
        claim(workspace.storage, config)
        _say_splits(workspace)
        settings.check_batches(config, workspace.data.sizes)
        teacher.load_checked(workspace)
        yield workspace, check


def _remove_leftovers(workspace: Workspace, made_of: Teacher, states: Sequence[str]) -> None:
    """Removes half-written files and training states, and ends in MLflow what no process goes on with.

    Args:
        states: folders of training states; every network that this run wanted is trained.
    """
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
