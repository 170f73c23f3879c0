"""Publishes a student in MLflow: a run with metrics and reports, a model folder, and a version with tags."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lana_ray.registry._folder import Model, save
from lana_ray.registry._session import Experiment, in_experiment, pages
from lana_ray.registry._tracking import PARENT, log_curve
from lana_ray.registry._versions import Version, find_version, finished_versions, model_name

_OWNER = "run_directory"
_METRICS = ("latency_ms", "teacher_latency_ms", "predicted_ms", "speedup", "accuracy", "teacher_accuracy")
_REQUIRED = (
    *("latency_ms", "teacher_latency_ms", "budget_ms", "speedup"),
    *("accuracy", "validation_accuracy", "teacher_accuracy"),
    *("architecture", "student_fingerprint", "teacher_fingerprint", "target_fingerprint"),
    *("target_settings", "processor", "runtime", _OWNER),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A finished student and everything that is registered with it; raises ValueError if a tag is missing."""

    model: Model
    target: str
    budget: str
    """The text of ``str(Budget)``: ``50%``, ``12.5ms``."""
    teacher: str
    tags: Mapping[str, str]
    """``latency_ms``, ``teacher_latency_ms``, ``budget_ms``, ``speedup``, ``accuracy``, ``teacher_accuracy``,
    ``validation_accuracy`` (for the aliases), ``architecture``, ``student_fingerprint`` (identifies a
    registered student), ``teacher_fingerprint`` (teacher, data and splits: accuracies are comparable if it is
    equal), ``target_fingerprint`` (settings and hardware), ``target_settings`` (JSON of ``config.Target``),
    ``processor``, ``runtime`` (with its version), ``run_directory`` (a hash, for ``end_abandoned``),
    and more; without secrets and paths."""
    floor: Model | None = None
    """The teacher without the layers that can be left out, a second reference of drift; ``floor_latency_ms``
    is then a tag too."""
    artifacts: Mapping[str, str | Path] = field(default_factory=dict)
    """Files logged to the MLflow run: name in MLflow -> local file."""
    curve: Sequence[Mapping[str, float]] = ()
    """Its learning curve: ``epoch``, ``loss`` and validation ``accuracy`` of every evaluated epoch."""

    def __post_init__(self) -> None:
        if missing := [tag for tag in _REQUIRED if tag not in self.tags]:
            raise ValueError(f"student for {self.target}: tags without {', '.join(missing)}")

    @property
    def all_tags(self) -> dict[str, str]:
        return {**self.tags, "teacher": self.teacher, "target": self.target, "budget": self.budget}


def register(
    students: Sequence[Student],
    teachers: Mapping[str, Model],
    *,
    parent: str,
    tracking_uri: str,
    prefix: str,
) -> list[Version]:
    """Registers every student that is not registered yet; returns the versions in the order of ``students``.

    ``promote`` sets their aliases. Everything is uploaded before the version appears, and the version appears
    with all its tags at once: a process killed at any point leaves a complete version or none.

    Args:
        teachers: models by target; uploaded once, before the first student that is compared with it.
        parent: id of the pipeline's run, from ``track``.

    Raises:
        UserError: torch cannot export a network with a free batch dimension.
    """
    with in_experiment(tracking_uri, prefix) as experiment:
        places = []
        for student in students:
            name = model_name(prefix, student.target)
            _create_registered_model(experiment.client, name, student)
            fingerprint = student.tags["student_fingerprint"]
            versions = finished_versions(experiment.client, name)
            done = [v.version for v in versions if v.tags["student_fingerprint"] == fingerprint]
            if done:
                places.append((name, done[0]))
                continue
            models = {"teacher": teachers[student.target], "floor": student.floor}
            references = {
                f"{kind}_model": _log_reference(experiment, student, kind, model)
                for kind, model in models.items()
                if model is not None
            }
            tags = {**student.all_tags, **references, "run": parent}
            places.append((name, _publish(experiment, name, student, tags)))
        return [find_version(experiment.client, f"models:/{name}/{number}") for name, number in places]


def _create_registered_model(client: Any, name: str, student: Student) -> None:
    """Creates the target's registered model if there is none, and tags it."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(
            name, description=f"{student.teacher} accelerated for {student.target} by lana_ray"
        )
    for key, value in {"teacher": student.teacher, "target": student.target}.items():
        client.set_registered_model_tag(name, key, value)


def _log_reference(experiment: Experiment, student: Student, kind: str, model: Model) -> str:
    """Uploads a network that a student is measured against, once, unregistered; returns the model's id.

    There is one per experiment, teacher and target (with its hardware), listed with the experiment's models.

    Args:
        kind: ``teacher`` or ``floor``.
    """
    from mlflow.entities import LoggedModelStatus

    client = experiment.client
    same = {key: student.all_tags[key] for key in ("target", "teacher_fingerprint", "target_fingerprint")}
    query = " AND ".join(f"tags.{key} = '{value}'" for key, value in {"kind": kind, **same}.items())
    for logged in client.search_logged_models([experiment.id], query):
        if logged.status == LoggedModelStatus.READY:
            return str(logged.model_id)
    keys = [key for key in ("latency_ms", "accuracy") if f"{kind}_{key}" in student.tags]
    costs = {key: student.tags[f"{kind}_{key}"] for key in keys}
    tags = {**same, **costs, "kind": kind, "teacher": student.teacher, _OWNER: student.tags[_OWNER]}
    logged_id = str(client.create_logged_model(experiment.id, name=kind, tags=tags).model_id)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = save(model, Path(scratch), model_id=logged_id)
            client.log_model_artifacts(logged_id, str(folder))
    except BaseException:
        client.finalize_logged_model(logged_id, "FAILED")
        raise
    client.finalize_logged_model(logged_id, "READY")
    return logged_id


def _publish(experiment: Experiment, name: str, student: Student, tags: Mapping[str, str]) -> int:
    """Uploads a student in its own run and returns the number of its new version.

    Args:
        tags: the student's own, ``run`` (the parent of the student's run), and the ids of the models that it
            is compared with, ``teacher_model`` and ``floor_model``.
    """
    from mlflow.entities import LoggedModelOutput

    client = experiment.client
    created = experiment.create_run(f"{student.target} {student.budget}", {**tags, PARENT: tags["run"]})
    run = created.info.run_id
    try:
        logged = client.create_logged_model(experiment.id, name="student", source_run_id=run, tags=tags)
        model = logged.model_id
        client.log_outputs(run, [LoggedModelOutput(model, step=0)])
        for key in _METRICS:
            if key in tags:
                client.log_metric(run, key, float(tags[key]), model_id=model)
        log_curve(client, run, student.curve)
        with tempfile.TemporaryDirectory() as scratch:
            client.log_artifacts(run, str(_collect(student.artifacts, Path(scratch, "artifacts"))))
            folder = save(student.model, Path(scratch), model_id=model, run_id=run)
            client.log_model_artifacts(model, str(folder))
        client.finalize_logged_model(model, "READY")
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)
    return _create_version(client, name, tags, run, model)


def _create_version(client: Any, name: str, tags: Mapping[str, str], run: str, model: str) -> int:
    latency_ms, teacher_ms = float(tags["latency_ms"]), float(tags["teacher_latency_ms"])
    accuracy, teacher_accuracy = float(tags["accuracy"]), float(tags["teacher_accuracy"])
    description = (
        f"{tags['teacher']} accelerated for {tags['target']} within {tags['budget']}: {latency_ms:.3f} ms "
        f"instead of {teacher_ms:.3f} ms, accuracy {accuracy:.1%} (teacher {teacher_accuracy:.1%})"
    )
    version = client.create_model_version(
        name, f"models:/{model}", run_id=run, tags=tags, description=description, model_id=model
    )
    link = json.dumps([{"name": name, "version": version.version}])
    # MLflow's web pages use this tag for links.
    client.set_logged_model_tags(model, {"mlflow.modelVersions": link})
    return int(version.version)


def _collect(artifacts: Mapping[str, str | Path], folder: Path) -> Path:
    folder.mkdir()
    for name, source in artifacts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    return folder


def end_abandoned(run_directory: str, *, tracking_uri: str, prefix: str) -> int:
    """Marks the runs that killed processes left open as killed, deletes their half uploaded models.

    Args:
        run_directory: value of the students' tag of that name; no process may be working in it.

    Returns:
        The number of runs and models.
    """
    from mlflow.entities import LoggedModelStatus

    owned = f"tags.{_OWNER} = '{run_directory}'"
    with in_experiment(tracking_uri, prefix) as experiment:
        client = experiment.client
        runs = experiment.search_runs(f"{owned} and attributes.status = 'RUNNING'")
        for run in runs:
            client.set_terminated(run.info.run_id, "KILLED")
        models = pages(partial(client.search_logged_models, [experiment.id]), owned)
        pending = [model for model in models if model.status == LoggedModelStatus.PENDING]
        for model in pending:
            client.delete_logged_model(model.model_id)
    return len(runs) + len(pending)
