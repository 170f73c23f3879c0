"""Students in MLflow's model registry: one registered model per target, one version per student.

MLflow lives in this package only. A version is a PyTorch program (``.pt2``) with a free batch dimension,
its signature, an input example and small files beside it; plain torch and MLflow load it back. Its teacher
is kept in the same form, but not registered, so that whoever has the version can compare the two. MLflow
takes seconds to import, so it is imported where it is first used.

Read ``_folder.py`` for the files of a model and ``_program.py`` for how its program is read back,
``_publish.py`` for what MLflow is told about it, ``_tracking.py`` about a pipeline run and ``_trials.py``
about a sweep, ``_versions.py`` for how it is found again and which version is champion, ``_session.py`` for
MLflow's moods.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from lana_ray.config import RegistryConfig
from lana_ray.errors import UserError
from lana_ray.registry._folder import EXTRA_FILES, ONNX_FILE, PROGRAM_FILE, VERIFICATION_FILE, Model
from lana_ray.registry._program import load_program
from lana_ray.registry._publish import (
    Student,
    create_experiment,
    create_registered_model,
    end_abandoned_uploads,
    log_teacher,
    publish,
)
from lana_ray.registry._session import SQLITE, pages, session
from lana_ray.registry._tracking import DataSet, Part, Pipeline, update
from lana_ray.registry._trials import log_sweep
from lana_ray.registry._versions import (
    CHAMPION,
    Version,
    budget_alias,
    files_uri,
    find_version,
    finished_versions,
    model_name,
    record_verification,
    set_aliases,
)
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.tables import TrialRow

__all__ = [
    "CHAMPION",
    "ONNX_FILE",
    "VERIFICATION_FILE",
    "DataSet",
    "Model",
    "Part",
    "Pipeline",
    "Student",
    "Version",
    "budget_alias",
    "default_tracking_uri",
    "download",
    "end_abandoned",
    "find",
    "list_models",
    "load",
    "log_trials",
    "model_name",
    "promote",
    "register",
    "track",
]


def default_tracking_uri(config: RegistryConfig, run: Storage) -> str:
    """The tracking URI set in the configuration, else in the environment, else a database in the run.

    Raises:
        UserError: where nothing is set and the run directory is not local.
    """
    if uri := config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not run.is_local:
        raise UserError(
            f"run.dir {run.root}: MLflow's database needs a local path; set registry.tracking_uri "
            "or MLFLOW_TRACKING_URI to a tracking server"
        )
    return SQLITE + run.path("mlflow.db")


def register(
    students: Sequence[Student],
    teachers: Mapping[str, Model],
    *,
    parent: str,
    tracking_uri: str,
    prefix: str,
) -> list[Version]:
    """Registers every student that is not registered yet; ``promote`` gives them their aliases.

    Everything is uploaded before the version appears, and the version appears with all its tags at once:
    a process killed at any point leaves a version whole or not at all.

    Args:
        teachers: by target; uploaded once, before the first student that is compared with it.
        parent: id of the pipeline's run, of ``track``.
        tracking_uri: MLflow's; with sqlite, artifacts are kept in ``mlartifacts`` beside the database.
        prefix: of the registered models' names, and the experiment's name.

    Returns:
        The version of each student, in the order given.

    Raises:
        UserError: registry unreachable or refusing, or a network that torch cannot export.
    """
    with session(tracking_uri, create=True) as client:
        experiment = create_experiment(client, prefix, tracking_uri)
        places = []
        for student in students:
            name = model_name(prefix, student.target)
            create_registered_model(client, name, student)
            fingerprint = student.tags["student_fingerprint"]
            done = [
                v for v in finished_versions(client, name) if v.tags["student_fingerprint"] == fingerprint
            ]
            if done:
                places.append((name, done[0].version))
                continue
            teacher = log_teacher(client, experiment, student, teachers[student.target])
            number = publish(client, experiment, name, student, teacher_model=teacher, parent=parent)
            places.append((name, number))
        return [find_version(client, f"models:/{name}/{number}") for name, number in places]


def promote(
    judged: Sequence[tuple[Version, str | None]], *, tracking_uri: str, default_budget: str
) -> list[Version]:
    """Writes down what verification found of versions, and points the aliases at the best that passed.

    Of the versions with the newest one's teacher, data and hardware, ``budget-…`` marks the most accurate of
    each budget, and ``champion`` the most accurate of all that were measured within ``default_budget``
    (of all where none was), by the validation images. Of equally accurate ones it is the newest.

    Args:
        judged: versions, each with what is wrong with it, None where nothing is.

    Returns:
        The versions, in the order given, with their aliases.

    Raises:
        UserError: registry unreachable or refusing.
    """
    with session(tracking_uri) as client:
        for version, problem in judged:
            record_verification(client, version, problem)
        for name in dict.fromkeys(version.name for version, _ in judged):
            client.set_registered_model_tag(name, "default_budget", default_budget)
            set_aliases(client, name, default_budget)
        return [find_version(client, version.model_uri) for version, _ in judged]


def track(
    pipeline: Pipeline,
    *,
    parts: Sequence[Part],
    files: Mapping[str, bytes],
    status: str,
    tracking_uri: str,
    prefix: str,
) -> str:
    """Brings the run of a pipeline run up to date, or makes it, and returns its id.

    Args:
        parts: logged below it unless they are.
        files: logged with it, in place of those of an earlier time.
        status: ``RUNNING``, ``FINISHED`` or ``FAILED``; a finished run stays so.
        prefix: the experiment's name, as for ``register``.

    Raises:
        UserError: tracking server unreachable or refusing.
    """
    with session(tracking_uri, create=True) as client:
        experiment = create_experiment(client, prefix, tracking_uri)
        return update(client, experiment, pipeline, parts, files, status)


def end_abandoned(run_directory: str, *, tracking_uri: str, prefix: str) -> int:
    """Ends what killed processes of a run directory left open in MLflow; how many there were.

    Args:
        run_directory: as students' tag of that name; no process works in it.
        prefix: the experiment's name, as for ``register``.

    Raises:
        UserError: tracking server unreachable or refusing.
    """
    with session(tracking_uri, create=True) as client:
        experiment = create_experiment(client, prefix, tracking_uri)
        return end_abandoned_uploads(client, experiment, run_directory)


def log_trials(trials: Sequence[TrialRow], *, parent: str, tracking_uri: str, prefix: str) -> int:
    """Logs the trials of a sweep, a child run each, below a run for their target; how many were new.

    Args:
        trials: rows of ``search.parquet``.
        parent: id of the pipeline's run, of ``track``.
        prefix: the experiment's name, as for ``register``.

    Raises:
        UserError: tracking server unreachable or refusing.
    """
    with session(tracking_uri, create=True) as client:
        experiment = create_experiment(client, prefix, tracking_uri)
        return sum(
            log_sweep(client, experiment, parent, target, [row for row in trials if row.target == target])
            for target in dict.fromkeys(row.target for row in trials)
        )


def find(model_uri: str, tracking_uri: str) -> Version:
    """The version that ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` stands for.

    Raises:
        UserError: where there is none, or the URI is of another form.
    """
    with session(tracking_uri) as client:
        return find_version(client, model_uri)


def load(model_uri: str, tracking_uri: str) -> nn.Module:
    """The network of a version: maps [N, C, H, W] to [N, classes].

    Only its program is fetched, and nothing that a file of the registry brings along is run.

    Args:
        model_uri: as for ``find``, or a ``Version.teacher_uri``.

    Raises:
        UserError: as ``find``, and where the program is missing, damaged, or more than ATen operators.
    """
    with session(tracking_uri) as client, tempfile.TemporaryDirectory() as folder:
        import mlflow.artifacts

        source = f"{files_uri(client, model_uri)}/{PROGRAM_FILE}"
        return load_program(Path(mlflow.artifacts.download_artifacts(source, dst_path=folder)))


def download(model_uri: str, file: str, folder: Path, tracking_uri: str) -> Path:
    """Copies a file of a version somewhere below ``folder`` and returns its path.

    There are ``preprocessing.json``, ``labels.json``, ``verification.safetensors`` (see ``Model``) and, where
    the network could be exported, ``model.onnx``.

    Args:
        model_uri: as for ``find``, or a ``Version.teacher_uri``.

    Raises:
        UserError: as ``find``, and where the version has no such file.
    """
    with session(tracking_uri) as client:
        import mlflow.artifacts

        source = f"{files_uri(client, model_uri)}/{EXTRA_FILES}"
        present = sorted(Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(source))
        if file not in present:
            raise UserError(f"{model_uri}: has no file {file}; it has {', '.join(present)}")
        return Path(mlflow.artifacts.download_artifacts(f"{source}/{file}", dst_path=str(folder)))


def list_models(tracking_uri: str, target: str | None = None) -> list[Version]:
    """Every version that ``register`` finished, by name and version; only a target's where one is given.

    Raises:
        UserError: registry unreachable, no such database, or models, but none for ``target``.
    """
    with session(tracking_uri) as client:
        models = [model for model in pages(client.search_registered_models) if "target" in model.tags]
        targets = sorted({model.tags["target"] for model in models})
        if target is not None and targets and target not in targets:
            raise UserError(f"no model is registered for target {target!r}; there are {', '.join(targets)}")
        names = sorted(model.name for model in models if target in (None, model.tags["target"]))
        return [version for name in names for version in finished_versions(client, name)]
