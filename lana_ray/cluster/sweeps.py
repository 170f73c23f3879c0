"""Many trials with Ray Tune, on a grid or where Optuna proposes."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from lana_ray.errors import UserError
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage

MAX_FAILURES = 3
"""How often a trial whose process died is begun again."""
_POLL_S = 0.5
_SETTINGS = "settings"
_STUDY = "sweep"
_RAY_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables, which verbose=0 does not silence
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV and TensorBoard files; results are kept here
}


@dataclass(frozen=True)
class Trial:
    """What is done with settings, in two parts, as nobody may wait for a device while holding another."""

    find: Callable[..., dict[str, Any]]
    """Of (settings, *shared, file): what was found, as plain numbers, texts and lists. It holds the sweep's
    resources and waits for nobody. Until it ends, it may keep what it needs to go on in the file of the run
    directory."""
    judge: Callable[..., dict[str, Any]]
    """Of (what was found, settings, *shared): more results. It holds nothing, and may wait for samplers."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is tried, how often, and what for."""

    name: str
    """Carries a hash of all that a trial depends on: sweeps of the same name share the trials of equal
    settings."""
    space: Mapping[str, Any]
    """Setting -> ``uniform`` or ``log_uniform``, where it is drawn from; or, for all, ``each_of`` values."""
    objectives: Mapping[str, str]
    """What of a trial's result is to be large (``max``) or small (``min``)."""
    trials: int
    """Where settings are drawn."""
    first: Sequence[Mapping[str, Any]] = ()
    """Settings among them that are tried before any is drawn; they lie where the space does."""
    concurrency: int
    resources: Mapping[str, float]
    """What a trial claims while it finds: ``CPU``, ``GPU``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector of the nodes it may run on; empty for all."""
    seed: int

    @property
    def is_grid(self) -> bool:
        """Whether every combination of the settings' values is tried, and nothing is drawn."""
        return all(isinstance(values, dict) for values in self.space.values())

    @property
    def size(self) -> int:
        """How many trials there are in all."""
        return len(self.combinations()) if self.is_grid else self.trials

    def combinations(self) -> list[dict[str, Any]]:
        """Every setting of a grid."""
        values = itertools.product(*(of_setting["grid_search"] for of_setting in self.space.values()))
        return [dict(zip(self.space, chosen, strict=True)) for chosen in values]

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether settings are of this sweep's grid, or could have been drawn by it."""
        if self.is_grid:
            return settings in self.combinations()
        return settings.keys() == self.space.keys() and all(
            self.space[name].is_valid(value) for name, value in settings.items()
        )


def uniform(low: float, high: float) -> Any:
    """A setting that is drawn between two numbers."""
    return tune.uniform(low, high)


def log_uniform(low: float, high: float) -> Any:
    """A setting that is drawn between two numbers, on a log scale."""
    return tune.loguniform(low, high)


def each_of(values: Iterable[Any]) -> Any:
    """A setting that takes every one of some values."""
    return tune.grid_search(list(values))


def run_sweep(
    sweep: Sweep, trial: Trial, shared: Sequence[Any], storage: Storage, on_trial: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Runs what is left of a sweep; every trial's ``settings`` and results, in the order they were begun.

    Each trial's result is a file, ``search/<name>/*.json``, and nothing else is read when the sweep goes on.
    Killed at any moment and called again, it keeps what was finished, takes up what was begun, and ends with
    as many trials as were asked for. Where settings are drawn, Optuna's sampler proposes them towards the
    Pareto front of the objectives.

    Args:
        shared: further arguments of ``trial``, sent to the cluster once.
        on_trial: called with the number of finished trials.

    Raises:
        UserError: a mistake of the user that only a trial could see.
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
        # Tune keeps its own books as pickles, so they live and die with this process.
        with tempfile.TemporaryDirectory(prefix="lana_ray-") as books:
            _run(
                _tuner(sweep, trainable, finished, left, storage, books),
                lambda: on_trial(len(_finished(sweep, storage))),
            )
        finished = _finished(sweep, storage)
    on_trial(len(finished))
    return finished


def _run(tuner: tune.Tuner, on_tick: Callable[[], None]) -> None:
    ended: list[Any] = []

    def fit() -> None:
        try:
            ended.append(tuner.fit())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        on_tick()
    (results,) = ended
    if isinstance(results, BaseException):
        raise results
    for result in results:
        if result.error is not None:
            raise _user_error(result.error) or result.error


def _finished(sweep: Sweep, storage: Storage) -> list[dict[str, Any]]:
    """The results of this sweep's trials; its folder may hold those of other settings as well."""
    rows = (storage.read_json(file) for file in storage.list(layout.trials(sweep.name), ".json"))
    mine = [row for row in rows if sweep.holds(row["settings"])]
    return sorted(mine, key=lambda row: float(row["begun"]))


def _row(kept: Any) -> dict[str, Any]:
    return {**kept, "settings": dict(kept["settings"]), "begun": float(kept["begun"])}


def _trainable(sweep: Sweep, trial: Trial, shared: Sequence[Any], storage: Storage) -> Any:
    """The trial as Tune calls it."""
    known = [ray.put(argument) for argument in shared]
    gpus = sweep.resources.get("GPU", 0)
    # A process that has used a GPU keeps memory of it.
    find = ray.remote(max_calls=1 if gpus else 0, max_retries=0)(trial.find).options(
        num_cpus=sweep.resources.get("CPU", 0),
        num_gpus=gpus,
        label_selector=dict(sweep.labels),
        scheduling_strategy="DEFAULT",  # and not inside what Tune holds
    )

    def run(config: dict[str, Any]) -> None:
        settings = config[_SETTINGS] if sweep.is_grid else {name: config[name] for name in sweep.space}
        key, begun = fingerprint(settings), time.time()
        file, state = layout.trial(sweep.name, key), layout.trial_state(sweep.name, key)
        note = layout.trial_begun(sweep.name, key)
        storage.write_json(note, settings)
        try:
            found = ray.get(find.remote(settings, *known, state))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        found |= trial.judge(found, settings, *ray.get(known))
        storage.write_json(file, {"begun": begun, "settings": settings, **found})
        storage.remove(state)
        storage.remove(note)
        tune.report({name: found[name] for name in sweep.objectives})

    labels = {"bundle_label_selector": [dict(sweep.labels)]} if sweep.labels else {}
    # A trial itself holds a byte of memory, as Tune wants something held, and no device that others wait for.
    bundle = tune.PlacementGroupFactory([{"memory": 1.0}], **labels)
    return tune.with_resources(run, bundle)


def _tuner(
    sweep: Sweep,
    trainable: Any,
    finished: Sequence[Mapping[str, Any]],
    left: int,
    storage: Storage,
    books: str,
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
            num_samples=1 if sweep.is_grid else left,  # of a grid: how often it is gone through
            max_concurrent_trials=sweep.concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=sweep.name,
            storage_path=books,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )


def _begun(sweep: Sweep, storage: Storage) -> list[dict[str, Any]]:
    """Settings of trials that were begun and not finished."""
    folder = layout.trials(sweep.name)
    done = {file.removesuffix(".json") for file in storage.list(folder, ".json")}
    begun = [
        file for file in storage.list(folder, layout.BEGUN) if file.removesuffix(layout.BEGUN) not in done
    ]
    settings = [storage.kept(file, dict) for file in begun]
    return [known for known in settings if known is not None and sweep.holds(known)]


def _proposals(
    sweep: Sweep, finished: Sequence[Mapping[str, Any]], begun: Sequence[Mapping[str, Any]]
) -> OptunaSearch:
    """Optuna's sampler, which knows what was found and begins with what was begun or asked for first."""
    metrics, modes = list(sweep.objectives), list(sweep.objectives.values())
    distributions = OptunaSearch.convert_search_space(dict(sweep.space))
    books = optuna.storages.InMemoryStorage()
    minimize, maximize = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    directions = [minimize if mode == "min" else maximize for mode in modes]
    study = optuna.create_study(storage=books, study_name=_STUDY, directions=directions)
    for row in finished:
        values = [float(row[name]) for name in metrics]
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(row["settings"]), distributions=distributions, values=values
            )
        )
    done = [row["settings"] for row in finished]
    first = [dict(s) for s in (*begun, *sweep.first) if s not in done]
    return OptunaSearch(
        space=distributions,
        metric=metrics,
        mode=modes,
        points_to_evaluate=[s for k, s in enumerate(first) if s not in first[:k]] or None,
        sampler=optuna.samplers.TPESampler(seed=sweep.seed + len(finished)),  # not to draw the same again
        study_name=_STUDY,
        storage=books,
    )


def _user_error(error: BaseException) -> UserError | None:
    """The user's mistake inside a failed trial, if there is one."""
    inside: list[Any] = [error, error.__cause__, getattr(error, "cause", None)]
    return next((e for e in inside if isinstance(e, UserError)), None)
