"""Students in MLflow's model registry: one registered model per target, one version per student.

Only this package uses MLflow. A version is a PyTorch program (``.pt2``) with a free batch dimension, its
signature, an input example and small files; plain torch and MLflow can load it. Its teacher is stored in the
same form, but not registered, so that users of the version can compare the two. MLflow takes seconds to
import, so functions import it on first use.

Read ``_folder.py`` for the files of a model and ``_program.py`` for loading its program; ``_publish.py``,
``_tracking.py`` and ``_trials.py`` for what is logged about a student, a pipeline run and a sweep;
``_versions.py`` for finding versions and choosing the champion; ``_session.py`` for connecting to MLflow.
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
    log_reference,
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
    """The tracking URI of the configuration, the environment or the run; UserError without a local one."""
    if uri := config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not run.is_local:
        raise UserError(
            "invalid_setting",
            f"run.dir {run.root}: MLflow's database needs a local path; set registry.tracking_uri "
            "or MLFLOW_TRACKING_URI to a tracking server",
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
    """Registers every student that is not registered yet; returns the versions in the order of ``students``.

    ``promote`` sets their aliases. Everything is uploaded before the version appears, and the version appears
    with all its tags at once: a process killed at any point leaves a complete version or none.

    Args:
        teachers: models by target; uploaded once, before the first student that is compared with it.
        parent: id of the pipeline's run, from ``track``.
        tracking_uri: MLflow's; with sqlite, artifacts are in the folder ``mlartifacts`` next to the database.
        prefix: prefix of the registered models' names, and the experiment's name.

    Raises:
        UserError: the registry is unreachable or refuses, or torch cannot export a network.
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
            models = {"teacher": teachers[student.target], "floor": student.floor}
            references = {
                kind: log_reference(client, experiment, student, kind, model)
                for kind, model in models.items()
                if model is not None
            }
            number = publish(client, experiment, name, student, references=references, parent=parent)
            places.append((name, number))
        return [find_version(client, f"models:/{name}/{number}") for name, number in places]


def promote(
    verified: Sequence[tuple[Version, str | None]], *, tracking_uri: str, default_budget: str
) -> list[Version]:
    """Records the results of verification, and sets the aliases to the best versions that passed.

    Only versions with the newest version's teacher, data and hardware are compared, by their accuracy on the
    validation images. ``budget-…`` is the most accurate version of each budget; ``champion`` is the most
    accurate of all that were measured within ``default_budget`` (of all versions if none was). The newest
    version wins a tie.

    Args:
        verified: versions, each with its problem, or None if it passed.

    Returns:
        The versions with their aliases, in the order of ``verified``.

    Raises:
        UserError: the registry is unreachable or refuses.
    """
    with session(tracking_uri) as client:
        for version, problem in verified:
            record_verification(client, version, problem)
        for name in dict.fromkeys(version.name for version, _ in verified):
            client.set_registered_model_tag(name, "default_budget", default_budget)
            set_aliases(client, name, default_budget)
        return [find_version(client, version.model_uri) for version, _ in verified]


def track(
    pipeline: Pipeline,
    *,
    parts: Sequence[Part],
    files: Mapping[str, bytes],
    status: str,
    tracking_uri: str,
    prefix: str,
) -> str:
    """Creates or updates the MLflow run of a pipeline run, and returns its id.

    Args:
        parts: logged as child runs unless they already are.
        files: logged with the run; they replace earlier ones.
        status: ``RUNNING``, ``FINISHED`` or ``FAILED``; a finished run stays finished.
        prefix: the experiment's name, as for ``register``.

    Raises:
        UserError: the tracking server is unreachable or refuses.
    """
    with session(tracking_uri, create=True) as client:
        experiment = create_experiment(client, prefix, tracking_uri)
        return update(client, experiment, pipeline, parts, files, status)


def end_abandoned(run_directory: str, *, tracking_uri: str, prefix: str) -> int:
    """Ends the MLflow runs and uploads that killed processes of a run directory left open; returns how many.

    Args:
        run_directory: value of the students' tag of that name; no process may be working in it.
        prefix: the experiment's name, as for ``register``.

    Raises:
        UserError: the tracking server is unreachable or refuses.
    """
    with session(tracking_uri, create=True) as client:
        experiment = create_experiment(client, prefix, tracking_uri)
        return end_abandoned_uploads(client, experiment, run_directory)


def log_trials(trials: Sequence[TrialRow], *, parent: str, tracking_uri: str, prefix: str) -> int:
    """Logs each trial of a sweep as a child run of a run for its target; returns how many were new.

    Args:
        trials: rows of ``search.parquet``.
        parent: id of the pipeline's run, from ``track``.
        prefix: the experiment's name, as for ``register``.

    Raises:
        UserError: the tracking server is unreachable or refuses.
    """
    with session(tracking_uri, create=True) as client:
        experiment = create_experiment(client, prefix, tracking_uri)
        return sum(
            log_sweep(client, experiment, parent, target, [row for row in trials if row.target == target])
            for target in dict.fromkeys(row.target for row in trials)
        )


def find(model_uri: str, tracking_uri: str) -> Version:
    """The version of ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``; UserError if there is none."""
    with session(tracking_uri) as client:
        return find_version(client, model_uri)


def load(model_uri: str, tracking_uri: str) -> nn.Module:
    """Returns the network of a version, which maps [N, C, H, W] to [N, classes].

    It fetches only the program, and executes no code from the registry's files.

    Args:
        model_uri: as for ``find``, or a ``Version.teacher_uri``.

    Raises:
        UserError: as ``find``; the program is missing, damaged, or contains more than ATen operators.
    """
    with session(tracking_uri) as client, tempfile.TemporaryDirectory() as folder:
        import mlflow.artifacts

        source = f"{files_uri(client, model_uri)}/{PROGRAM_FILE}"
        return load_program(Path(mlflow.artifacts.download_artifacts(source, dst_path=folder)))


def download(model_uri: str, file: str, folder: Path, tracking_uri: str) -> Path:
    """Copies a file of a version to a path below ``folder`` and returns that path.

    The files are ``preprocessing.json``, ``labels.json``, ``verification.safetensors`` (see ``Model``) and
    ``model.onnx``, which is missing if the network could not be exported.

    Args:
        model_uri: as for ``find``, or a ``Version.teacher_uri``.

    Raises:
        UserError: as ``find``; the version has no such file.
    """
    with session(tracking_uri) as client:
        import mlflow.artifacts

        source = f"{files_uri(client, model_uri)}/{EXTRA_FILES}"
        present = sorted(Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(source))
        if file not in present:
            raise UserError("missing_file", f"{model_uri}: has no file {file}; it has {', '.join(present)}")
        return Path(mlflow.artifacts.download_artifacts(f"{source}/{file}", dst_path=str(folder)))


def list_models(tracking_uri: str, target: str | None = None) -> list[Version]:
    """Returns all versions that ``register`` finished, sorted by name and version.

    Args:
        target: return only the versions of this target.

    Raises:
        UserError: the registry is unreachable, its database does not exist, or no model is for ``target``.
    """
    with session(tracking_uri) as client:
        models = [model for model in pages(client.search_registered_models) if "target" in model.tags]
        targets = sorted({model.tags["target"] for model in models})
        if target is not None and targets and target not in targets:
            raise UserError(
                "unknown_name",
                f"no model is registered for target {target!r}; use one of {', '.join(targets)}",
            )
        names = sorted(model.name for model in models if target in (None, model.tags["target"]))
        return [version for name in names for version in finished_versions(client, name)]
