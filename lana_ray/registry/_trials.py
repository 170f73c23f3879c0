"""A sweep as MLflow keeps it: a run for each target, and in it a run for each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lana_ray.registry._session import pages

_PARENT = "mlflow.parentRunId"  # by which MLflow's pages nest runs
_PARAMETERS = ("method", "lambda", "seed", "budget", "cost")
_METRICS = ("measured_cost", "predicted_cost", "measured_ms", "predicted_ms", "accuracy", "loss", "search_s")


def log_sweep(client: Any, experiment: str, target: str, trials: Sequence[Mapping[str, Any]]) -> int:
    """Logs the trials of a target that are not logged yet; how many that were.

    A trial is known by its ``key``: what a killed process left half logged is logged again.
    """
    search = _search(client, experiment)
    parents = search(f"tags.search_target = '{target}'")
    parent = (
        parents[0].info.run_id
        if parents
        else client.create_run(
            experiment, run_name=f"search {target}", tags={"search_target": target, "target": target}
        ).info.run_id
    )
    known = {
        run.data.tags["trial"]
        for run in search(f"tags.`{_PARENT}` = '{parent}'")
        if run.info.status == "FINISHED"
    }
    missing = [trial for trial in trials if trial["key"] not in known]
    for trial in missing:
        _log(client, experiment, parent, target, trial)
    client.set_terminated(parent)
    return len(missing)


def _log(client: Any, experiment: str, parent: str, target: str, trial: Mapping[str, Any]) -> None:
    tags = {_PARENT: parent, "trial": trial["key"], "target": target, "architecture": trial["architecture"]}
    name = f"{trial['method']} {trial['key'][:6]}"
    run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    for key in _PARAMETERS:
        if trial.get(key) is not None:
            client.log_param(run, key, trial[key])
    for key in _METRICS:
        if trial[key] is not None and math.isfinite(trial[key]):
            client.log_metric(run, key, trial[key])
    client.set_terminated(run)


def _search(client: Any, experiment: str) -> Any:
    def search(query: str) -> list[Any]:
        def page(filter_string: str, page_token: str | None) -> Any:
            return client.search_runs([experiment], filter_string, page_token=page_token)

        return list(pages(page, query))

    return search
