"""A pipeline run in MLflow: whole, below one run, and nothing of it twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lana_ray import registry, tracking
from lana_ray.config import load_config
from lana_ray.errors import UserError
from lana_ray.networks.teachers import Teacher
from lana_ray.registry import DataSet, Part, Pipeline
from lana_ray.workspace import Workspace

from ..errors import refuses
from ..report.rundir import trial
from ..runs import settings
from .students import model, network, student

PIPELINE = Pipeline(
    name="quickstart",
    key="k1",
    tags={"teacher": "tiny_net"},
    parameters={f"distill.p{i}": str(i) for i in range(150)},
    data=DataSet(name="digits", digest="d1", sizes={"train": 8, "test": 2}),
)
CURVE = ({"epoch": 1.0, "loss": 0.9, "accuracy": 0.5}, {"epoch": 1.5, "loss": 0.7, "accuracy": 0.6})
STAGES = (Part(name="stage teacher", metrics={"seconds": 2.0}, curve=CURVE),)
TARGET = Part(name="target ort", tags={"target": "ort"}, metrics={"table_error": 0.01}, files={"a.svg": b"<"})


def _track(
    uri: str, parts: Sequence[Part] = (), status: str = "RUNNING", key: str = "k1", **files: bytes
) -> str:
    pipeline = replace(PIPELINE, key=key)
    return registry.track(
        pipeline, parts=parts, files=files, status=status, tracking_uri=uri, prefix="tiny/net"
    )


def _client(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def _runs(uri: str) -> dict[str, Any]:
    """Every run by its name, which none may share."""
    runs = _client(uri).search_runs(["1"])
    found = {run.info.run_name: run for run in runs}
    assert len(found) == len(runs)
    return found


def test_a_pipeline_is_one_run_whatever_is_told_again(uri: str) -> None:
    first = _track(uri)
    assert _track(uri, STAGES, page=b"1") == first
    assert _track(uri, [*STAGES, TARGET], status="FINISHED", page=b"2") == first
    assert _track(uri, [*STAGES, TARGET]) == first
    runs, client = _runs(uri), _client(uri)
    assert runs.keys() == {"quickstart", "stage teacher", "target ort"}
    parent = runs.pop("quickstart")
    assert parent.data.params == PIPELINE.parameters
    (data,) = parent.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "d1")
    assert data.dataset.profile == '{"train": 8, "test": 2}'
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {first}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    teacher = runs["stage teacher"].info.run_id
    losses = client.get_metric_history(teacher, "training_loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 0.9), (2, 0.7)]
    assert len(client.get_metric_history(teacher, "seconds")) == 1
    assert [file.path for file in client.list_artifacts(first)] == ["page"]
    assert [file.path for file in client.list_artifacts(runs["target ort"].info.run_id)] == ["a.svg"]
    other = _track(uri, key="k2")
    assert other != first


def test_a_part_that_was_killed_is_closed_and_logged_again(uri: str) -> None:
    parent, client = _track(uri), _client(uri)
    tags = {"mlflow.parentRunId": parent, "part": "stage teacher"}
    killed = client.create_run("1", run_name="killed", tags=tags).info.run_id
    for _ in range(2):
        _track(uri, STAGES)
    runs = _runs(uri)
    assert client.get_run(killed).info.status == "KILLED"
    assert runs["stage teacher"].info.status == "FINISHED"
    assert runs["stage teacher"].data.metrics["validation_accuracy"] == 0.6


def test_a_run_that_failed_goes_on(uri: str) -> None:
    states = []
    for status in ("RUNNING", "FAILED", "RUNNING", "FINISHED", "FAILED"):
        _track(uri, status=status)
        states.append(_runs(uri)["quickstart"].info.status)
    assert states == ["RUNNING", "FAILED", "RUNNING", "FINISHED", "FINISHED"]


def test_students_and_trials_are_nested_below_the_pipelines_run(uri: str) -> None:
    parent = _track(uri)
    (version,) = registry.register(
        [student("a", curve=CURVE)],
        {"ort 1t": model(network())},
        parent=parent,
        tracking_uri=uri,
        prefix="tiny/net",
    )
    assert version.tags["run"] == parent
    program = trial("program", 0.5, 0.5, budget=0.6, target="ort 1t", predicted_ms=None)
    priced = trial("differentiable", 0.5, 0.7, multiplier=0.1, seed=1, target="ort 1t", key="t2")
    for again in (parent, _track(uri, key="k2")):  # another configuration's sweep has trials of this one
        news = registry.log_trials([program, priced], parent=again, tracking_uri=uri, prefix="tiny/net")
        assert news == (2 if again == parent else 0)
    runs = {run.info.run_name: run for run in _client(uri).search_runs(["1"])}
    assert runs["ort 1t 50%"].data.tags["mlflow.parentRunId"] == parent
    assert runs["ort 1t 50%"].data.metrics["validation_accuracy"] == 0.6
    assert runs["search ort 1t"].data.tags["mlflow.parentRunId"] == parent
    of_program, of_priced = runs["program t1"].data, runs["differentiable t2"].data
    for data in (of_program, of_priced):
        assert data.tags["mlflow.parentRunId"] == runs["search ort 1t"].info.run_id
    assert of_program.params == {"method": "program", "budget": "0.6", "cost": "latency_ms"}
    assert of_priced.params == {
        "method": "differentiable",
        "lambda": "0.1",
        "seed": "1",
        "cost": "latency_ms",
    }
    assert of_priced.metrics["accuracy"] == 0.7
    assert "predicted_ms" not in of_program.metrics


def test_parameters_are_the_settings_without_cluster_registry_and_passwords(tmp_path: Path) -> None:
    config = load_config(
        settings(
            tmp_path,
            data={"parquet": "s3://me:c4nary@bucket/train.parquet", "image_size": 16},
            registry={"tracking_uri": "http://me:c4nary@host"},
        )
    )
    found = tracking.parameters(config)
    assert found["budgets.latency_ms"] == "1000%, 500ms"
    assert found["targets.eager.batch_size"] == "4"
    assert found["targets.ort.measure.architectures"] == "8"
    assert found["data.parquet"] == "s3://bucket/train.parquet"
    assert not [key for key in found if key.startswith(("registry", "ray"))]
    assert "c4nary" not in str(found)


def test_a_registry_that_goes_costs_the_run_nothing_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Teacher(name="net", network=network(), fingerprint="f", untrained=None)
    told: list[list[str]] = []
    gone = False

    def run_of(*_: object, parts: Sequence[Part], **__: object) -> str:
        if gone:
            raise UserError("unreachable", "registry http://host: no tracking server answers")
        told.append([part.name for part in parts])
        return "r1"

    monkeypatch.setattr(tracking, "run_of", run_of)
    workspace = Workspace(load_config(settings(tmp_path)))
    with tracking.tracking(workspace) as tracked:
        with tracked.stage("teacher"):
            pass
        tracked.begin(teacher)
        gone = True
        with tracked.stage("sample"):
            pass
        gone = False
        with tracked.stage("distill"):
            pass
    stages = ["stage teacher", "stage sample", "stage distill"]
    assert told == [stages[:1], stages]
    assert "no tracking server answers; the stage sample is logged later" in capsys.readouterr().out
    gone = True
    with refuses("unreachable", "registry http://host"), tracking.tracking(workspace) as tracked:
        tracked.begin(teacher)
