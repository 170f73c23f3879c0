"""The stages as tables, and one loop that runs them.

Each stage keeps what it makes in the run directory and reuses what still fits; what later stages read of it
in the same process is a field of ``Made``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lana_ray.cluster import distill_worker, train_worker
from lana_ray.cluster.agreement import NodeCheck
from lana_ray.cluster.connection import connect
from lana_ray.config import Config, load_config
from lana_ray.deploy import runtimes
from lana_ray.monitoring.progress import say
from lana_ray.networks.teachers import Teacher
from lana_ray.predictors.fits import Fit
from lana_ray.preflight import settings
from lana_ray.registry import default_tracking_uri
from lana_ray.run_dir import lease
from lana_ray.run_dir.claim import claim
from lana_ray.spaces.offers import offers
from lana_ray.stages import (
    distill,
    finetune,
    fit,
    leftovers,
    meter,
    proxy,
    register,
    sample,
    score,
    search_cells,
    search_layers,
    select,
    summary,
    teacher,
)
from lana_ray.stages.finetune import Finished
from lana_ray.stages.sample import TargetCosts
from lana_ray.stages.select import Selected
from lana_ray.stages.track import Tracking, tracking
from lana_ray.workspace import TEACHER_FILE, Workspace

REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to."""

    dir: str
    """The run directory, with ``summary.json`` and ``report.html``."""
    summary: dict[str, Any]

    @property
    def results(self) -> list[dict[str, Any]]:
        """One entry per target and budget; the keys are those of ``summary.json``."""
        return list(self.summary["results"])


@dataclass(kw_only=True)
class Made:
    """What the stages of one invocation have made so far, each field by the stage it is commented with."""

    workspace: Workspace
    tracked: Tracking
    tracks: bool
    """Whether MLflow is told of the stages."""
    teacher: Teacher = field(init=False)  # teacher
    costs: dict[str, TargetCosts] = field(init=False)  # sample
    scores: Sequence[NDArray[np.float64]] = field(init=False)  # score
    selected: Selected = field(init=False)  # select, then finetune
    finished: list[Finished] = field(init=False)  # finetune
    summary: dict[str, Any] = field(init=False)  # register
    fits: list[Fit] = field(init=False)  # fit
    trials: list[dict[str, Any]] = field(init=False)  # search
    plots: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # report
    files: tuple[str, ...] = ()
    """Of the run directory, kept in MLflow with the run."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    run: Callable[[Made], None]
    on_cluster: bool = True
    """Whether it needs Ray."""


def _teacher(made: Made) -> None:
    made.teacher = teacher.run(made.workspace)
    if made.tracks:
        made.tracked.begin(made.teacher)


def _sample(made: Made) -> None:
    for line in offers(made.workspace.space):
        say(f"pool: {line}")
    made.costs = sample.run(made.workspace)
    select.check(made.workspace, made.costs)


def _distill(made: Made) -> None:
    distill.run(made.workspace, made.costs)


def _score(made: Made) -> None:
    made.scores = score.run(made.workspace, sample.considered(made.costs), sample.left_out(made.costs))


def _rank(made: Made) -> None:
    _score(made)
    proxy.run(made.workspace, made.scores)


def _select(made: Made) -> None:
    made.selected = select.run(made.workspace, made.costs, made.scores)


def _finetune(made: Made) -> None:
    look_again = functools.partial(select.again, made.workspace, made.scores)
    made.finished, made.selected = finetune.run(made.workspace, made.selected, look_again)
    select.write(made.workspace, made.selected)


def _register(made: Made) -> None:
    evidence = {"costs.parquet": sample.costs_file("{target}")}
    uris = register.run(made.workspace, made.teacher, made.finished, made.selected.costs, evidence)
    seconds = made.tracked.seconds
    made.summary = summary.write(made.workspace, made.teacher, made.selected, made.finished, uris, seconds)
    made.files = (summary.FILE,)


def _report(made: Made) -> None:
    from lana_ray.report import write_page  # matplotlib, only where a page is made

    made.plots = write_page(made.workspace.storage, made.workspace.config.ray.node_price_per_hour)
    made.files = (summary.FILE, REPORT_FILE)


def _fit(made: Made) -> None:
    workspace, costs = made.workspace, made.costs
    more = functools.partial(sample.latencies, workspace, workspace.space, costs)
    made.fits = fit.run(workspace, fit.of_layers(workspace, costs), more)


def _metered_teacher(made: Made) -> None:
    meter.check(made.workspace)
    _teacher(made)


def _search_layers(made: Made) -> None:
    made.trials = search_layers.run(made.workspace, made.teacher, made.costs, made.scores)


def _search_cells(made: Made) -> None:
    made.trials = search_cells.run(made.workspace, made.teacher)


RUN = (
    Stage("teacher", _teacher),
    Stage("sample", _sample),
    Stage("distill", _distill),
    Stage("score", _rank),
    Stage("select", _select),
    Stage("finetune", _finetune),
    Stage("register", _register, on_cluster=False),
    Stage("report", _report, on_cluster=False),
)
"""``lana-ray run``, and each of its stages with those before it."""
FIT = (*RUN[:2], Stage("fit", _fit))
"""``lana-ray fit``."""
SEARCH = {
    "layers": (
        Stage("teacher", _metered_teacher),
        *RUN[1:3],
        Stage("score", _score),
        Stage("search", _search_layers),
    ),
    "cells": (Stage("teacher", _metered_teacher), Stage("search", _search_cells)),
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
    return RunResult(dir=loaded.run.dir, summary=summary)


def run(config: Config, until: str) -> dict[str, Any] | None:
    """Runs the stages up to ``until``; returns the summary where students are registered."""
    count = STAGES.index(until) + 1
    registers = count > STAGES.index(_TRACKED_FROM)
    unfinished = [train_worker.STATES["layers"], distill_worker.STATES]
    made = _run(config, RUN[:count], tracks=registers, unfinished=unfinished if registers else None)
    return made.summary if registers else None


def fit_predictors(config: Config) -> list[Fit]:
    """Samples every target and fits a latency predictor to what was measured there."""
    return _run(config, FIT, tracks=False).fits


def search_architectures(config: Config) -> list[dict[str, Any]]:
    """Sweeps searches on every target, over cells or over the scored candidates; one row per trial."""
    space = "layers" if config.search.cells is None else "cells"
    unfinished = {"layers": distill_worker.STATES, "cells": train_worker.STATES["cells"]}[space]
    return _run(config, SEARCH[space], tracks=True, unfinished=[unfinished]).trials


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
            default_tracking_uri(config.registry, workspace.storage)
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
                tracked.finish(made.selected.costs if made.plots else {}, made.plots, made.files)
        if unfinished is not None:
            leftovers.collect(workspace, made.teacher, unfinished)
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
        claim(workspace.storage, config, TEACHER_FILE)
        _say_splits(workspace)
        settings.check_batches(config, workspace.data.sizes)
        teacher.load_checked(workspace)
        yield workspace, check


def _say_splits(workspace: Workspace) -> None:
    sizes = workspace.data.sizes
    say(
        f"data: {sizes['train']} images to train with, {sizes['score']} to score and choose, "
        f"{sizes['validation']} to validate, {sizes['test']} to test; {workspace.data.num_classes} classes"
    )
    for note in (*workspace.data.notes, *workspace.data.check()):
        say(f"data: {note}")
