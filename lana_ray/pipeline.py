"""The stages in order. Each keeps what it makes in the run directory and reuses what still fits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lana_ray.cluster import distill_worker as distilling
from lana_ray.cluster import train_worker as training
from lana_ray.cluster.agreement import NodeCheck
from lana_ray.cluster.connection import connect, node_count
from lana_ray.config import Config, load_config
from lana_ray.deploy import runtimes
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say
from lana_ray.predictors.fits import Fit
from lana_ray.preflight import settings as structure
from lana_ray.registry import default_tracking_uri
from lana_ray.run_dir import lease
from lana_ray.run_dir.hours import Hours
from lana_ray.run_dir.storage import Storage
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
from lana_ray.stages.track import Tracking, tracking
from lana_ray.workspace import TEACHER_FILE, Workspace

STAGES = ("teacher", "sample", "distill", "score", "select", "finetune", "register", "report")
RUN_FILE = "run.yaml"
REPORT_FILE = "report.html"
Stage = Callable[[str], AbstractContextManager[None]]
"""Times the stage of a name."""
_REGISTERING = ("register", "report")


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
    """Runs the stages up to ``until``; returns the summary where the last stage is reached."""
    with _opened(config) as (workspace, check):
        if until in _REGISTERING:  # what it would miss there is told before days of work
            default_tracking_uri(config.registry, workspace.storage)
        with tracking(workspace) as tracked:
            return _run(workspace, until, tracked, _guarded(tracked.stage, workspace, check))


def _run(workspace: Workspace, until: str, tracked: Tracking, stage: Stage) -> dict[str, Any] | None:
    with connect(workspace.config.ray):
        with stage("teacher"):
            loaded = teacher.run(workspace)
        if until == "teacher":
            return None
        if until in _REGISTERING:
            tracked.begin(loaded)
        for line in offers(workspace.space):
            say(f"pool: {line}")
        with stage("sample"):
            costs = sample.run(workspace)
            select.check(workspace, costs)
        if until == "sample":
            return None
        with stage("distill"):
            distill.run(workspace, costs)
        if until == "distill":
            return None
        with stage("score"):
            scores = score.run(workspace, sample.considered(costs), sample.left_out(costs))
            proxy.run(workspace, scores)
        if until == "score":
            return None
        with stage("select"):
            selected = select.run(workspace, costs, scores)
        if until == "select":
            return None
        with stage("finetune"):
            look_again = functools.partial(select.again, workspace, scores)
            finished, selected = finetune.run(workspace, selected, look_again)
            select.write(workspace, selected)
    if until == "finetune":
        return None
    with stage("register"):
        evidence = {"costs.parquet": sample.costs_file("{target}")}
        uris = register.run(workspace, loaded, finished, selected.costs, evidence)
    found = summary.write(workspace, loaded, selected, finished, uris, tracked.seconds)
    if until == "report":
        from lana_ray.report import write_page  # matplotlib, only where a page is made

        plots = write_page(workspace.storage, workspace.config.ray.node_price_per_hour)
        tracked.finish(selected.costs, plots, [summary.FILE, REPORT_FILE])
    else:
        tracked.finish({}, {}, [summary.FILE])
    leftovers.collect(workspace, loaded, [training.STATES["layers"], distilling.STATES])
    return found


def fit_predictors(config: Config) -> list[Fit]:
    """Samples every target and fits a latency predictor to what was measured there."""
    with _opened(config) as (workspace, check), connect(config.ray):
        stage = _guarded(Hours(workspace.storage, node_count).stage, workspace, check)
        with stage("teacher"):
            teacher.run(workspace)
        with stage("sample"):
            costs = sample.run(workspace)
        with stage("fit"):
            more = functools.partial(sample.latencies, workspace, workspace.space, costs)
            return fit.run(workspace, fit.of_layers(workspace, costs), more)


def search_architectures(config: Config) -> list[dict[str, Any]]:
    """Sweeps searches on every target, over cells or over the scored candidates; one row per trial."""
    with _opened(config) as (workspace, check), tracking(workspace) as tracked:
        rows = _search(workspace, tracked, _guarded(tracked.stage, workspace, check))
        tracked.finish({}, {}, [])
        done = training.STATES["cells"] if config.search.cells is not None else distilling.STATES
        leftovers.collect(workspace, workspace.loaded, [done])
    return rows


def _search(workspace: Workspace, tracked: Tracking, stage: Stage) -> list[dict[str, Any]]:
    with connect(workspace.config.ray):
        meter.check(workspace)
        with stage("teacher"):
            loaded = teacher.run(workspace)
        tracked.begin(loaded)
        if workspace.config.search.cells is not None:
            with stage("search"):
                return search_cells.run(workspace, loaded)
        with stage("sample"):
            costs = sample.run(workspace)
            select.check(workspace, costs)
        with stage("distill"):
            distill.run(workspace, costs)
        with stage("score"):
            scores = score.run(workspace, sample.considered(costs), sample.left_out(costs))
        with stage("search"):
            return search_layers.run(workspace, loaded, costs, scores)


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Workspace, Callable[[], None]]]:
    """The run's workspace, which nobody else works in meanwhile, and a check that this is still so.

    Mistakes are told before a cluster is started.
    """
    for target in config.targets:
        runtimes.check(target)
    structure.check_pool(config)
    workspace = Workspace(config)
    workspace.storage.check_writable()
    with lease.held(workspace.storage) as check:
        _claim(workspace.storage, config)
        _say_splits(workspace)
        structure.check_batches(config, workspace.data.sizes)
        teacher.load_checked(workspace)
        yield workspace, check


def _guarded(stage: Stage, workspace: Workspace, check: Callable[[], None]) -> Stage:
    """Stages that begin only while the run directory is this driver's, and every node's."""
    all_nodes = NodeCheck(workspace.config.run.dir)

    @contextmanager
    def guarded(name: str) -> Iterator[None]:
        check()
        all_nodes.look()
        with stage(name):
            yield

    return guarded


def _say_splits(workspace: Workspace) -> None:
    sizes = workspace.data.sizes
    say(
        f"data: {sizes['train']} images to train with, {sizes['score']} to score and choose, "
        f"{sizes['validation']} to validate, {sizes['test']} to test; {workspace.data.num_classes} classes"
    )
    for note in (*workspace.data.notes, *workspace.data.check()):
        say(f"data: {note}")


_NO_IDENTITY = ("adapt", "root", "download")  # another value of these makes no other teacher or data


def _claim(storage: Storage, config: Config) -> None:
    """Writes ``run.yaml``; refuses a directory that holds what was made of another teacher or other data."""
    written = config.to_public_yaml()  # whoever has the directory may read it
    earlier, now = _earlier(storage), yaml.safe_load(written)
    if earlier is not None:
        if storage.exists(TEACHER_FILE):  # which all the rest is made of; before, a mistake can be mended
            _refuse_others(storage, earlier, now)
        changed = [
            _changes(section, earlier.get(section), now[section]) for section in now if section != "run"
        ]
        for change in filter(None, changed):
            say(f"changed since the last run: {change}; what depends on it is made again")
    storage.write_text(RUN_FILE, written)


def _earlier(storage: Storage) -> dict[str, Any] | None:
    """The settings of the last run; None if there was none or, which is said, its file is damaged."""
    if not storage.exists(RUN_FILE):
        return None
    try:
        found = yaml.safe_load(storage.read_text(RUN_FILE))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in ("teacher", "data")):
        return found
    say(f"{storage.url(RUN_FILE)}: damaged; it is made again")
    return None


def _refuse_others(storage: Storage, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    for section in ("teacher", "data"):
        for key, value in now[section].items():
            before = earlier[section].get(key)
            if key not in _NO_IDENTITY and before != value:
                raise UserError(
                    f"run.dir {storage.root}: holds a run with {section}.{key} {before!r}, now it is "
                    f"{value!r}; choose another run.dir"
                )


def _changes(section: str, before: Any, now: Any) -> str:
    if before == now:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in now if before.get(key) != now[key]]
        return ", ".join(f"{section}.{key} {before.get(key)!r} → {now[key]!r}" for key in keys)
    return section
