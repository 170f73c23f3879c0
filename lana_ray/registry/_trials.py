"""Logs a sweep to MLflow: a run for each target, with a child run for each trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lana_ray.registry._tracking import PARENT, search_runs
from lana_ray.run_dir.tables import TrialRow

_PARAMETERS = {"method": "method", "lambda": "multiplier", "seed": "seed", "budget": "budget", "cost": "cost"}
"""Name in MLflow -> field of ``TrialRow``."""
_METRICS = ("measured_cost", "predicted_cost", "measured_ms", "predicted_ms", "accuracy", "loss", "search_s")


def log_sweep(client: Any, experiment: str, pipeline: str, target: str, trials: Sequence[TrialRow]) -> int:
    """Logs the trials of a target that are not logged yet; returns their number.

    Trials are identified by their ``key``; a trial that a killed process logged incompletely is logged again.

    Args:
        pipeline: id of the pipeline's run, the parent of the sweep's run.
    """
    logged = {
        run.data.tags["trial"]
        for run in search_runs(client, experiment, f"tags.target = '{target}' and tags.trial LIKE '%'")
        if run.info.status == "FINISHED"
    }
    missing = [trial for trial in trials if trial.key not in logged]
    if not missing:
        return 0
    tags = {"search_target": target, "target": target, PARENT: pipeline}
    sweeps = search_runs(
        client, experiment, f"tags.search_target = '{target}' and tags.`{PARENT}` = '{pipeline}'"
    )
    sweep = sweeps[0] if sweeps else client.create_run(experiment, run_name=f"search {target}", tags=tags)
    for trial in missing:
        _log(client, experiment, sweep.info.run_id, target, trial)
    client.set_terminated(sweep.info.run_id)
    return len(missing)


def _log(client: Any, experiment: str, parent: str, target: str, trial: TrialRow) -> None:
    tags = {PARENT: parent, "trial": trial.key, "target": target, "architecture": trial.architecture}
    name = f"{trial.method} {trial.key[:6]}"
    run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    for key, field in _PARAMETERS.items():
        if (value := getattr(trial, field)) is not None:
            client.log_param(run, key, value)
    for key in _METRICS:
        if (value := getattr(trial, key)) is not None and math.isfinite(value):
            client.log_metric(run, key, value)
    client.set_terminated(run)
