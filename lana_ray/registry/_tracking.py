"""Logs a pipeline run to MLflow: one run, with a child run for each stage, each target and each sweep.

A sweep's run has a child run for each trial. What is logged already is skipped, so that a resumed or repeated
pipeline run adds only what is new.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lana_ray.registry._session import Experiment, in_experiment
from lana_ray.run_dir.tables import TrialRow

PARENT = "mlflow.parentRunId"
"""The tag with which MLflow nests runs."""
_KEY, _PART = "pipeline", "part"
_BATCH = 100
"""The most parameters that MLflow takes at a time; it takes more metrics."""
_PARAMETERS = {"method": "method", "lambda": "multiplier", "seed": "seed", "budget": "budget", "cost": "cost"}
"""Name in MLflow -> field of ``TrialRow``."""
_METRICS = ("measured_cost", "predicted_cost", "measured_ms", "predicted_ms", "accuracy", "loss", "search_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """The images of a pipeline run."""

    name: str
    digest: str
    """Hash of content and splits, at most 36 characters."""
    sizes: Mapping[str, int]
    """Number of images by split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """A pipeline run."""

    name: str
    key: str
    """Its identity: pipeline runs with the same key are logged to the same MLflow run."""
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    """Settings without secrets."""
    data: DataSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A stage or a target of a pipeline run: a child run that is logged once and completely."""

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    """Learning curve, as for ``log_curve``."""
    files: Mapping[str, bytes] = field(default_factory=dict)


def track(
    pipeline: Pipeline,
    *,
    parts: Iterable[Part],
    files: Mapping[str, bytes],
    status: str,
    tracking_uri: str,
    prefix: str,
) -> str:
    """Finds or creates the MLflow run of a pipeline run, logs what is missing, and returns its id.

    Args:
        parts: logged as child runs unless they already are.
        files: logged with the run; they replace earlier ones.
        status: ``RUNNING``, ``FINISHED`` or ``FAILED``; a finished run stays finished.
    """
    with in_experiment(tracking_uri, prefix) as experiment:
        client = experiment.client
        runs = experiment.search_runs(f"tags.{_KEY} = '{pipeline.key}'")
        run = runs[0] if runs else experiment.create_run(pipeline.name, {**pipeline.tags, _KEY: pipeline.key})
        run_id = str(run.info.run_id)
        _log_parameters(client, run, pipeline.parameters)
        if not run.inputs.dataset_inputs:
            _log_data(client, run_id, pipeline.data)
        logged = {
            child.data.tags[_PART]: child
            for child in experiment.search_runs(f"tags.`{PARENT}` = '{run_id}'")
            if _PART in child.data.tags and child.info.status != "KILLED"
        }
        for part in parts:
            if (earlier := logged.get(part.name)) is None or earlier.info.status != "FINISHED":
                if earlier is not None:
                    client.set_terminated(earlier.info.run_id, "KILLED")
                _log_part(experiment, run_id, part)
        _log_files(client, run_id, files)
        if run.info.status not in ("FINISHED", status):
            set_status = client.update_run if status == "RUNNING" else client.set_terminated
            set_status(run_id, status)
        return run_id


def log_trials(trials: Sequence[TrialRow], *, parent: str, tracking_uri: str, prefix: str) -> int:
    """Logs each trial of a sweep as a child run of a run for its target; returns how many were new.

    Trials are identified by their ``key``; a trial that a killed process logged incompletely is logged again.

    Args:
        parent: id of the pipeline's run, from ``track``.
    """
    with in_experiment(tracking_uri, prefix) as experiment:
        return sum(
            _log_sweep(experiment, parent, target, [row for row in trials if row.target == target])
            for target in dict.fromkeys(row.target for row in trials)
        )


def _log_sweep(experiment: Experiment, parent: str, target: str, trials: Sequence[TrialRow]) -> int:
    logged = {
        run.data.tags["trial"]
        for run in experiment.search_runs(f"tags.target = '{target}' and tags.trial LIKE '%'")
        if run.info.status == "FINISHED"
    }
    missing = [trial for trial in trials if trial.key not in logged]
    if not missing:
        return 0
    tags = {"search_target": target, "target": target, PARENT: parent}
    sweeps = experiment.search_runs(f"tags.search_target = '{target}' and tags.`{PARENT}` = '{parent}'")
    sweep = sweeps[0] if sweeps else experiment.create_run(f"search {target}", tags)
    for trial in missing:
        _log_trial(experiment, sweep.info.run_id, trial)
    experiment.client.set_terminated(sweep.info.run_id)
    return len(missing)


def _log_trial(experiment: Experiment, parent: str, trial: TrialRow) -> None:
    client = experiment.client
    tags = {PARENT: parent, "trial": trial.key, "target": trial.target, "architecture": trial.architecture}
    run = experiment.create_run(f"{trial.method} {trial.key[:6]}", tags).info.run_id
    for name, column in _PARAMETERS.items():
        if (value := getattr(trial, column)) is not None:
            client.log_param(run, name, value)
    for name in _METRICS:
        if (value := getattr(trial, name)) is not None and math.isfinite(value):
            client.log_metric(run, name, value)
    client.set_terminated(run)


def log_curve(client: Any, run: str, curve: Iterable[Mapping[str, float]]) -> None:
    """Logs ``loss`` (training) and ``accuracy`` (validation) of a learning curve by ``epoch``."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    names = {"loss": "training_loss", "accuracy": "validation_accuracy"}
    metrics = [
        Metric(name, point[key], now, math.ceil(point["epoch"]))
        for point in curve
        for key, name in names.items()
    ]
    for some in _batches(metrics):
        client.log_batch(run, metrics=some)


def _batches(entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (entries[start : start + _BATCH] for start in range(0, len(entries), _BATCH))


def _log_parameters(client: Any, run: Any, parameters: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    missing = [Param(key, value) for key, value in parameters.items() if key not in run.data.params]
    for some in _batches(missing):
        client.log_batch(run.info.run_id, params=some)


def _log_data(client: Any, run: str, data: DataSet) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"name": data.name}), json.dumps(dict(data.sizes))
    entity = Dataset(data.name, data.digest, source_type="lana_ray", source=source, profile=profile)
    client.log_inputs(run, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


def _log_part(experiment: Experiment, parent: str, part: Part) -> None:
    client = experiment.client
    run = experiment.create_run(part.name, {**part.tags, PARENT: parent, _PART: part.name}).info.run_id
    for key, value in part.metrics.items():
        client.log_metric(run, key, value)
    log_curve(client, run, part.curve)
    _log_files(client, run, part.files)
    client.set_terminated(run)


def _log_files(client: Any, run: str, files: Mapping[str, bytes]) -> None:
    if not files:
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            Path(scratch, name).write_bytes(content)
        client.log_artifacts(run, scratch)
