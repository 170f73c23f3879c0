"""Publishes a student in MLflow: a run with metrics and reports, a model folder, and a version with tags."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lana_ray.errors import UserError
from lana_ray.registry._folder import Model, save
from lana_ray.registry._moved import location
from lana_ray.registry._session import database, pages
from lana_ray.registry._tracking import PARENT, log_curve, search_runs

_OWNER = "run_directory"
_METRICS = ("latency_ms", "teacher_latency_ms", "predicted_ms", "speedup", "accuracy", "teacher_accuracy")
_REQUIRED = (
    "latency_ms",
    "teacher_latency_ms",
    "budget_ms",
    "speedup",
    "accuracy",
    "validation_accuracy",
    "teacher_accuracy",
    "architecture",
    "student_fingerprint",
    "teacher_fingerprint",
    "target_fingerprint",
    "target_settings",
    "processor",
    "runtime",
    _OWNER,
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
    ``processor``, ``runtime`` (with its version), ``run_directory`` (a hash, for ``end_abandoned_uploads``),
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


def create_experiment(client: Any, name: str, tracking_uri: str) -> str:
    """Returns the id of the experiment ``name``, and creates it if necessary.

    Artifacts of a new experiment are stored next to the database if that is a file.

    Raises:
        UserError: an experiment of this name was deleted.
    """
    if existing := client.get_experiment_by_name(name):
        if existing.lifecycle_stage == "deleted":
            raise UserError(
                "invalid_setting",
                f"registry {tracking_uri}: experiment {name!r} was deleted, and MLflow still reserves its "
                f"name; restore it with mlflow experiments restore -x {existing.experiment_id}, "
                "or set another registry.name",
            )
        return str(existing.experiment_id)
    file = database(tracking_uri)
    return str(client.create_experiment(name, artifact_location=location(file) if file else None))


def create_registered_model(client: Any, name: str, student: Student) -> None:
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


def log_reference(client: Any, experiment: str, student: Student, kind: str, model: Model) -> str:
    """Uploads a network that a student is measured against, once, unregistered; returns the model's id.

    There is one per experiment, teacher and target (with its hardware), listed with the experiment's models.

    Args:
        kind: ``teacher`` or ``floor``.

    Raises:
        UserError: torch cannot export the network with a free batch dimension.
    """
    from mlflow.entities import LoggedModelStatus

    same = {key: student.all_tags[key] for key in ("target", "teacher_fingerprint", "target_fingerprint")}
    query = " AND ".join(f"tags.{key} = '{value}'" for key, value in {"kind": kind, **same}.items())
    for logged in client.search_logged_models([experiment], query):
        if logged.status == LoggedModelStatus.READY:
            return str(logged.model_id)
    keys = [key for key in ("latency_ms", "accuracy") if f"{kind}_{key}" in student.tags]
    costs = {key: student.tags[f"{kind}_{key}"] for key in keys}
    tags = {**same, **costs, "kind": kind, "teacher": student.teacher, _OWNER: student.tags[_OWNER]}
    logged_id = str(client.create_logged_model(experiment, name=kind, tags=tags).model_id)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = save(model, Path(scratch), model_id=logged_id)
            client.log_model_artifacts(logged_id, str(folder))
    except BaseException:
        client.finalize_logged_model(logged_id, "FAILED")
        raise
    client.finalize_logged_model(logged_id, "READY")
    return logged_id


def publish(
    client: Any, experiment: str, name: str, student: Student, *, references: Mapping[str, str], parent: str
) -> int:
    """Uploads a student in its own run and returns the number of its new version.

    Args:
        references: ids of models by kind, stored in the tags ``teacher_model`` and ``floor_model``.
        parent: id of the pipeline's run, the parent of the student's run; stored in the tag ``run``.

    Raises:
        UserError: torch cannot export the network with a free batch dimension.
    """
    from mlflow.entities import LoggedModelOutput

    models = {f"{kind}_model": model for kind, model in references.items()}
    tags = {**student.all_tags, **models, "run": parent}
    run_name = f"{student.target} {student.budget}"
    run = client.create_run(experiment, run_name=run_name, tags={**tags, PARENT: parent}).info.run_id
    try:
        model = client.create_logged_model(experiment, name="student", source_run_id=run, tags=tags).model_id
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


def end_abandoned_uploads(client: Any, experiment: str, run_directory: str) -> int:
    """Marks runs of dead processes as killed, deletes their unfinished models; returns their number."""
    from mlflow.entities import LoggedModelStatus

    owned = f"tags.{_OWNER} = '{run_directory}'"
    runs = search_runs(client, experiment, f"{owned} and attributes.status = 'RUNNING'")
    for run in runs:
        client.set_terminated(run.info.run_id, "KILLED")

    def page(filter_string: str, page_token: str | None) -> Any:
        return client.search_logged_models([experiment], filter_string, page_token=page_token)

    pending = [model for model in pages(page, owned) if model.status == LoggedModelStatus.PENDING]
    for model in pending:
        client.delete_logged_model(model.model_id)
    return len(runs) + len(pending)
