"""Many trials with Ray Tune, on a grid or where Optuna proposes: the only Ray of this package."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from lana_ray.errors import UserError
from lana_ray.storage import Storage, fingerprint

MAX_FAILURES = 3
"""How often a trial whose process died is begun again."""
_POLL_S = 0.5
_RAY_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables, which verbose=0 does not silence
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV and TensorBoard files; results are kept here
}

Trial = Callable[..., dict[str, Any]]
"""Of (settings, *shared, file): what a trial found, as plain numbers, texts and lists. Until then it may
keep what it needs to go on in the file of the run directory."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is tried, how often, and what for."""

    name: str
    """Carries a hash of all that the trials depend on: a sweep of the same name goes on where it ended."""
    space: Mapping[str, Any]
    """Setting -> where it is drawn from, one of ``tune``'s distributions; or every setting's values, each a
    ``tune.grid_search``."""
    objectives: Mapping[str, str]
    """What of a trial's result is to be large (``max``) or small (``min``)."""
    trials: int
    """Where settings are drawn."""
    first: Sequence[Mapping[str, Any]] = ()
    """Settings among them that are tried before any is drawn; they lie where the space does."""
    concurrency: int
    resources: Mapping[str, float]
    """What a trial claims: ``CPU``, ``GPU``."""
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
        if not self.is_grid:
            return self.trials
        return math.prod(len(values["grid_search"]) for values in self.space.values())


def run_sweep(
    sweep: Sweep, trial: Trial, shared: Sequence[Any], storage: Storage, on_trial: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Runs what is left of a sweep; every trial's ``settings`` and results, in the order they were begun.

    Each trial's result is a file, ``search/<name>/*.json``. Killed at any moment and called again, the sweep
    keeps what was finished, begins anew what was not, with the same settings, and ends with as many trials as
    were asked for. Where settings are drawn, Optuna's sampler proposes them towards the Pareto front of the
    objectives.

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
    tuner = _tuner(sweep, _trainable(sweep, trial, shared, storage), storage)
    folder = _folder(sweep)
    ended: list[Any] = []

    def fit() -> None:
        try:
            ended.append(tuner.fit())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=fit, name=sweep.name, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        on_trial(len(storage.list(folder, ".json")))
    (results,) = ended
    if isinstance(results, BaseException):
        raise results
    for result in results:
        if result.error is not None:
            raise _user_error(result.error) or result.error
    files = {file: storage.read_json(file) for file in storage.list(folder, ".json")}
    return sorted(files.values(), key=lambda row: row["begun"])


def _trainable(sweep: Sweep, trial: Trial, shared: Sequence[Any], storage: Storage) -> Any:
    """The trial as Tune calls it; what has been found for the same settings is not looked for again."""
    known, names = [ray.put(argument) for argument in shared], list(sweep.space)

    def run(config: dict[str, Any]) -> None:
        settings = {name: config[name] for name in names}
        name, begun = f"{_folder(sweep)}/{fingerprint(settings)}", time.time()
        file, state = f"{name}.json", f"{name}.search"
        if not storage.exists(file):
            found = trial(settings, *ray.get(known), state)
            storage.write_json(file, {"begun": begun, "settings": settings, **found})
            storage.remove(state)
        result = storage.read_json(file)
        tune.report({name: result[name] for name in sweep.objectives})

    labels = {"bundle_label_selector": [dict(sweep.labels)]} if sweep.labels else {}
    bundle = tune.PlacementGroupFactory([dict(sweep.resources)], **labels)
    return tune.with_resources(run, bundle)


def _tuner(sweep: Sweep, trainable: Any, storage: Storage) -> tune.Tuner:
    folder = f"{storage.root}/ray"
    path = f"{folder}/{sweep.name}"
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(
            path, trainable, resume_unfinished=True, restart_errored=True, param_space=dict(sweep.space)
        )
    return tune.Tuner(
        trainable,
        param_space=dict(sweep.space),
        tune_config=tune.TuneConfig(
            search_alg=None if sweep.is_grid else _proposals(sweep),
            num_samples=1 if sweep.is_grid else sweep.trials,  # of a grid: how often it is gone through
            max_concurrent_trials=sweep.concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=sweep.name,
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )


def _proposals(sweep: Sweep) -> OptunaSearch:
    metrics, modes = list(sweep.objectives), list(sweep.objectives.values())
    first = [dict(settings) for settings in sweep.first]
    return OptunaSearch(metric=metrics, mode=modes, points_to_evaluate=first or None, seed=sweep.seed)


def _folder(sweep: Sweep) -> str:
    return f"search/{sweep.name}"


def _user_error(error: BaseException) -> UserError | None:
    """The user's mistake inside a failed trial, if there is one."""
    inside: list[Any] = [error, error.__cause__, getattr(error, "cause", None)]
    return next((e for e in inside if isinstance(e, UserError)), None)
