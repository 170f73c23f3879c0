"""Runs many trials with Ray Tune, on a grid or with settings that Optuna proposes."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from lana_ray.cluster.launch import in_background
from lana_ray.errors import UserError
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage

MAX_FAILURES = 3
"""How often a trial is restarted after its process died."""
_POLL_S = 0.5
_SETTINGS = "settings"
_STUDY = "sweep"
_RAY_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables, which verbose=0 does not silence
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and TensorBoard files; results are kept here
}


@dataclass(frozen=True)
class Trial:
    """The two functions of a trial; two, because no process may wait for a device while it holds another."""

    find: Callable[..., dict[str, Any]]
    """Callback ``(settings, *shared, file)``: returns results as plain numbers, texts and lists. It holds the
    sweep's resources and must not wait for others. Until it ends, it may keep the state that it needs to
    resume in ``file`` of the run directory."""
    judge: Callable[..., dict[str, Any]]
    """Callback ``(results, settings, *shared)``: returns further results. It holds no resources, and may wait
    for samplers."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The settings to try, the number of trials, and their objectives."""

    name: str
    """Includes a hash of everything that a trial depends on: sweeps of the same name share their trials."""
    space: Mapping[str, Any]
    """Setting -> its distribution, ``uniform`` or ``log_uniform``; in a grid, ``each_of`` for all."""
    objectives: Mapping[str, str]
    """Entry of a trial's results -> ``max`` or ``min``."""
    trials: int
    """Number of trials if settings are drawn; a grid has its own."""
    first: Sequence[Mapping[str, Any]] = ()
    """Settings that are tried before any are drawn; they must lie within the space."""
    concurrency: int
    resources: Mapping[str, float]
    """What a trial claims during ``find``: ``CPU``, ``GPU``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector of the nodes it may run on; empty for all."""
    seed: int

    @property
    def is_grid(self) -> bool:
        """Whether every combination of values is tried and nothing is drawn."""
        return all(isinstance(values, dict) for values in self.space.values())

    @property
    def size(self) -> int:
        return len(self.combinations()) if self.is_grid else self.trials

    def combinations(self) -> list[dict[str, Any]]:
        values = itertools.product(*(of_setting["grid_search"] for of_setting in self.space.values()))
        return [dict(zip(self.space, chosen, strict=True)) for chosen in values]

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether settings lie on this sweep's grid, or could have been drawn by it."""
        if self.is_grid:
            return settings in self.combinations()
        return settings.keys() == self.space.keys() and all(
            self.space[name].is_valid(value) for name, value in settings.items()
        )


uniform, log_uniform = tune.uniform, tune.loguniform
"""Distributions of a setting that is drawn between two numbers, evenly or on a log scale."""


def each_of(values: Iterable[Any]) -> Any:
    """Returns the grid of a setting that takes each of these values."""
    return tune.grid_search(list(values))


def run_sweep(
    sweep: Sweep, trial: Trial, shared: Sequence[Any], storage: Storage, on_trial: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Runs the unfinished trials of a sweep; returns all trials' ``settings`` and results, by time of start.

    Each trial's result is a file, ``search/<name>/*.json``; a resumed sweep reads nothing else. If killed at
    any moment and called again, it keeps finished trials, resumes begun ones, and ends with the requested
    number of trials. If settings are drawn, Optuna's sampler proposes them towards the Pareto front of the
    objectives.

    Args:
        shared: further arguments of the functions of ``trial``, sent to the cluster once.
        on_trial: callback ``(number of finished trials)``.

    Raises:
        UserError: a mistake of the user that only a trial could detect.
    """
    for variable, value in _RAY_TUNE.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for file in storage.list(layout.trials(sweep.name), ".json"):
        if storage.kept(file, _row, "its trial is run again") is None:
            storage.remove(file)
    finished = _finished(sweep, storage)
    left = sweep.size - len(finished)
    if left > 0:
        trainable = _trainable(sweep, trial, shared, storage)
        # Tune keeps its own state as pickles, which nothing may load later: it is deleted with this process.
        with tempfile.TemporaryDirectory(prefix="lana_ray-") as scratch:
            fit = in_background(_tuner(sweep, trainable, finished, left, storage, scratch).fit)
            while not wait([fit], _POLL_S).done:
                on_trial(len(_finished(sweep, storage)))
            _check(fit.result())
        finished = _finished(sweep, storage)
    on_trial(len(finished))
    return finished


def _check(results: tune.ResultGrid) -> None:
    """Raises the first trial's error, or the user's mistake that caused it."""
    if results.errors:
        error = results.errors[0]
        causes = getattr(error, "cause", None), error.__cause__
        raise next((cause for cause in causes if isinstance(cause, UserError)), error)


def _finished(sweep: Sweep, storage: Storage) -> list[dict[str, Any]]:
    """Returns the results of this sweep's trials; its folder may hold trials with other settings too."""
    rows = (storage.read_json(file) for file in storage.list(layout.trials(sweep.name), ".json"))
    own = [row for row in rows if sweep.holds(row["settings"])]
    return sorted(own, key=lambda row: float(row["begun"]))


def _row(kept: Any) -> dict[str, Any]:
    return {**kept, "settings": dict(kept["settings"]), "begun": float(kept["begun"])}


def _trainable(sweep: Sweep, trial: Trial, shared: Sequence[Any], storage: Storage) -> Any:
    references = [ray.put(argument) for argument in shared]
    gpus = sweep.resources.get("GPU", 0)
    # A process that has used a GPU keeps memory of it.
    find = ray.remote(max_calls=1 if gpus else 0, max_retries=0)(trial.find).options(
        num_cpus=sweep.resources.get("CPU", 0),
        num_gpus=gpus,
        label_selector=dict(sweep.labels),
        scheduling_strategy="DEFAULT",  # not inside the placement group of Tune's trial
    )

    def run(config: dict[str, Any]) -> None:
        settings = config[_SETTINGS] if sweep.is_grid else {name: config[name] for name in sweep.space}
        key, begun = fingerprint(settings), time.time()
        file, state = layout.trial(sweep.name, key), layout.trial_state(sweep.name, key)
        note = layout.trial_begun(sweep.name, key)
        storage.write_json(note, settings)
        try:
            results = ray.get(find.remote(settings, *references, state))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        results |= trial.judge(results, settings, *ray.get(references))
        storage.write_json(file, {"begun": begun, "settings": settings, **results})
        storage.remove(state)
        storage.remove(note)
        tune.report({name: results[name] for name in sweep.objectives})

    labels = {"bundle_label_selector": [dict(sweep.labels)]} if sweep.labels else {}
    # Tune requires a claim: the trial itself holds one byte of memory, and no device that others wait for.
    bundle = tune.PlacementGroupFactory([{"memory": 1.0}], **labels)
    return tune.with_resources(run, bundle)


def _tuner(
    sweep: Sweep,
    trainable: Any,
    finished: Sequence[Mapping[str, Any]],
    left: int,
    storage: Storage,
    scratch: str,
) -> tune.Tuner:
    space: dict[str, Any] = {}
    proposals = None
    if sweep.is_grid:
        done = [row["settings"] for row in finished]
        space = {_SETTINGS: tune.grid_search([s for s in sweep.combinations() if s not in done])}
    else:
        proposals = _proposals(sweep, finished, _begun(sweep, storage))
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            num_samples=1 if sweep.is_grid else left,  # for a grid: the number of passes over it
            max_concurrent_trials=sweep.concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=sweep.name,
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )


def _begun(sweep: Sweep, storage: Storage) -> list[dict[str, Any]]:
    """Returns the settings of trials that were begun but not finished."""
    folder = layout.trials(sweep.name)
    done = {file.removesuffix(".json") for file in storage.list(folder, ".json")}
    notes = [
        note for note in storage.list(folder, layout.BEGUN) if note.removesuffix(layout.BEGUN) not in done
    ]
    begun = [storage.kept(note, dict) for note in notes]
    return [settings for settings in begun if settings is not None and sweep.holds(settings)]


def _proposals(
    sweep: Sweep, finished: Sequence[Mapping[str, Any]], begun: Sequence[Mapping[str, Any]]
) -> OptunaSearch:
    """Returns Optuna's sampler with all finished trials; it proposes begun and ``first`` trials first."""
    metrics, modes = list(sweep.objectives), list(sweep.objectives.values())
    distributions = OptunaSearch.convert_search_space(dict(sweep.space))
    memory = optuna.storages.InMemoryStorage()
    direction = optuna.study.StudyDirection
    directions = [direction.MINIMIZE if mode == "min" else direction.MAXIMIZE for mode in modes]
    study = optuna.create_study(storage=memory, study_name=_STUDY, directions=directions)
    for row in finished:
        settings, values = dict(row["settings"]), [float(row[name]) for name in metrics]
        study.add_trial(
            optuna.trial.create_trial(params=settings, distributions=distributions, values=values)
        )
    done = [row["settings"] for row in finished]
    first = [dict(s) for s in (*begun, *sweep.first) if s not in done]
    return OptunaSearch(
        space=distributions,
        metric=metrics,
        mode=modes,
        points_to_evaluate=[s for k, s in enumerate(first) if s not in first[:k]] or None,
        # A resumed sweep must not draw the same settings again.
        sampler=optuna.samplers.TPESampler(seed=sweep.seed + len(finished)),
        study_name=_STUDY,
        storage=memory,
    )
