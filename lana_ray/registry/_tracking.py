"""Logs a pipeline run to MLflow: one run, with a child run for each stage and each target.

Parts that are logged already are skipped, so that a resumed or repeated pipeline run adds only new parts.
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

from lana_ray.registry._session import pages

PARENT = "mlflow.parentRunId"
"""The tag with which MLflow nests runs."""
_KEY, _PART = "pipeline", "part"
_BATCH = 100
"""The most parameters that MLflow takes at a time; it takes more metrics."""


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


def update(
    client: Any,
    experiment: str,
    pipeline: Pipeline,
    parts: Iterable[Part],
    files: Mapping[str, bytes],
    status: str,
) -> str:
    """Finds or creates the MLflow run of a pipeline run, logs what is missing, and returns its id.

    Args:
        files: files of the run itself; they replace earlier ones.
        status: MLflow's ``RUNNING``, ``FINISHED`` or ``FAILED``; a finished run stays finished.
    """
    runs = search_runs(client, experiment, f"tags.{_KEY} = '{pipeline.key}'")
    tags = {**pipeline.tags, _KEY: pipeline.key}
    run = runs[0] if runs else client.create_run(experiment, run_name=pipeline.name, tags=tags)
    run_id = str(run.info.run_id)
    _log_parameters(client, run, pipeline.parameters)
    if not run.inputs.dataset_inputs:
        _log_data(client, run_id, pipeline.data)
    logged = {
        child.data.tags[_PART]: child
        for child in search_runs(client, experiment, f"tags.`{PARENT}` = '{run_id}'")
        if _PART in child.data.tags and child.info.status != "KILLED"
    }
    for part in parts:
        if (earlier := logged.get(part.name)) is None or earlier.info.status != "FINISHED":
            if earlier is not None:
                client.set_terminated(earlier.info.run_id, "KILLED")
            _log_part(client, experiment, run_id, part)
    _log_files(client, run_id, files)
    if run.info.status not in ("FINISHED", status):
        set_status = client.update_run if status == "RUNNING" else client.set_terminated
        set_status(run_id, status)
    return run_id


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


def search_runs(client: Any, experiment: str, query: str) -> list[Any]:
    """Returns all runs of an experiment that match a query, the newest first."""

    def page(filter_string: str, page_token: str | None) -> Any:
        return client.search_runs([experiment], filter_string, page_token=page_token)

    return list(pages(page, query))


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


def _log_part(client: Any, experiment: str, parent: str, part: Part) -> None:
    tags = {**part.tags, PARENT: parent, _PART: part.name}
    run = client.create_run(experiment, run_name=part.name, tags=tags).info.run_id
    for key, value in part.metrics.items():
        client.log_metric(run, key, value)
    log_curve(client, run, part.curve)
    _log_files(client, run, part.files)
    client.set_terminated(run)


def _log_files(client: Any, run: str, files: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            Path(scratch, name).write_bytes(content)
        if files:
            client.log_artifacts(run, scratch)
