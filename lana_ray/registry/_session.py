"""A session with MLflow that prints nothing, avoids the network if possible, and fails with one clear line.

MLflow stores the locations of artifacts as absolute URIs in its database. A run directory may be moved or
copied with both, so this module looks for the artifacts next to the database.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from lana_ray.config import RegistryConfig
from lana_ray.errors import UserError
from lana_ray.redact import without_passwords
from lana_ray.run_dir.storage import Storage

_SQLITE = "sqlite:///"
_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # with MLflow's default of 7, a wrong address fails after minutes
}
_ARTIFACTS = "mlartifacts"
"""The folder of artifacts next to a database."""
_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""The columns of MLflow's tables that hold URIs of artifacts."""


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
    return _SQLITE + run.path("mlflow.db")


@contextmanager
def session(tracking_uri: str, *, create: bool = False) -> Iterator[Any]:
    """Yields an ``MlflowClient`` for ``tracking_uri``, and makes it MLflow's global tracking URI meanwhile.

    MLflow resolves ``models:/`` URIs with its global tracking URI. Models that contain pickles are refused,
    whatever MLflow's own setting.

    Args:
        create: create a missing database, and update the locations of artifacts in a moved one; without it,
            a missing database is an error.

    Raises:
        UserError: any failure of MLflow, its server, database or files; see ``accessing``.
    """
    _check_database(tracking_uri, create)
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    allowed = os.environ.get(_PICKLE)
    os.environ[_PICKLE] = "false"
    previous = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # errors are raised anyway
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.set_tracking_uri(tracking_uri)
            if create and (file := database(tracking_uri)) and file.exists():
                with accessing(tracking_uri):
                    _settle(file)
            yield _Client(tracking_uri)
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        # MLflow's own error would show the URI's password.
        raise _explained(tracking_uri, error) from None
    finally:
        if allowed is None:
            del os.environ[_PICKLE]
        else:
            os.environ[_PICKLE] = allowed
        logger.setLevel(level)
        mlflow.set_tracking_uri(previous)


@contextmanager
def accessing(tracking_uri: str) -> Iterator[None]:
    """Turns what one access raises because of a disk, a network or a missing package into a UserError.

    It does not cover a whole session, whose other code uses files and packages that are not the registry's.
    """
    try:
        yield
    except OSError as error:  # also requests' errors
        raise _explained(tracking_uri, error) from None
    except ModuleNotFoundError as error:  # a database driver or a cloud's artifact client
        raise UserError(
            "missing_package", f"registry {tracking_uri}: needs the package {error.name}; install it"
        ) from None


class _Client:
    """An ``MlflowClient`` with every call in ``accessing``."""

    def __init__(self, tracking_uri: str) -> None:
        from mlflow import MlflowClient

        self._accessing = accessing(tracking_uri)
        self._client = self._accessing(MlflowClient)()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        return self._accessing(attribute) if callable(attribute) else attribute


@dataclass(frozen=True)
class Experiment:
    """An experiment of MLflow."""

    client: Any
    id: str

    def search_runs(self, query: str) -> list[Any]:
        """Returns all runs that match a query, the newest first."""
        return list(pages(partial(self.client.search_runs, [self.id]), query))

    def create_run(self, name: str, tags: Mapping[str, str]) -> Any:
        return self.client.create_run(self.id, run_name=name, tags=tags)


@contextmanager
def in_experiment(tracking_uri: str, name: str) -> Iterator[Experiment]:
    """Opens a session and yields the experiment ``name``, which is created if necessary.

    Artifacts of a new experiment are stored next to the database if that is a file.

    Raises:
        UserError: as ``session``; an experiment of this name was deleted.
    """
    with session(tracking_uri, create=True) as client:
        if (existing := client.get_experiment_by_name(name)) is None:
            file = database(tracking_uri)
            place = artifacts_uri(file) if file else None
            yield Experiment(client, str(client.create_experiment(name, artifact_location=place)))
            return
        if existing.lifecycle_stage == "deleted":
            raise UserError(
                "invalid_setting",
                f"registry {tracking_uri}: experiment {name!r} was deleted, and MLflow still reserves its "
                f"name; restore it with mlflow experiments restore -x {existing.experiment_id}, "
                "or set another registry.name",
            )
        yield Experiment(client, str(existing.experiment_id))


def pages(search: Callable[..., Any], query: str | None = None) -> Iterator[Any]:
    """Yields all results of one of the client's paginated searches."""
    token = None
    while True:
        page = search(filter_string=query, page_token=token)
        yield from page
        if not (token := page.token):
            return


def database(tracking_uri: str) -> Path | None:
    """Returns the file of an sqlite URI; None for other URIs."""
    path = tracking_uri.removeprefix(_SQLITE)
    return Path(path).absolute() if path != tracking_uri else None


def _check_database(tracking_uri: str, create: bool) -> None:
    """Raises UserError if an sqlite URI names no database; MLflow would retry for a minute, or create one."""
    file = database(tracking_uri)
    if file is None or (create and not file.exists()):
        return
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
    except FileNotFoundError:
        raise UserError(
            "missing_file",
            f"registry {tracking_uri}: no such database; name the one in which a run registered models",
        ) from None
    except OSError as error:
        raise UserError(
            "invalid_file", f"registry {tracking_uri}: cannot be read ({error.strerror})"
        ) from None
    if head not in (b"", b"SQLite format 3\0"):
        raise UserError(
            "invalid_file",
            f"registry {tracking_uri}: not an SQLite database; set another registry.tracking_uri",
        )


def artifacts_uri(database: Path) -> str:
    """Returns the URI of the folder of artifacts next to a database."""
    return (database.parent / _ARTIFACTS).as_uri()


def present_uri(uri: str, database: Path) -> str:
    """Returns the present URI of artifacts: next to the database, unless they exist only at ``uri``."""
    root, folder, rest = f"{uri}/".rpartition(f"/{_ARTIFACTS}/")
    if not folder or not root.startswith("file:"):
        return uri
    old, new = _path(f"{root}/{_ARTIFACTS}"), database.parent / _ARTIFACTS
    if old.exists() and new.exists() and old.samefile(new):
        return uri
    below = url2pathname(rest)
    if (old / below).exists() and not (new / below).exists():
        return uri
    return f"{artifacts_uri(database)}/{rest}".rstrip("/")


def existing_uri(uri: str, database: Path, what: str) -> str:
    """Returns the present URI of artifacts; raises UserError, naming the owner ``what``, if it is missing."""
    now = present_uri(uri, database)
    if now.startswith("file:") and not _path(now).exists():
        raise UserError(
            "missing_file",
            f"{what}: its files are missing at {_path(now)}; if they were moved, put the run's folder "
            f"{_ARTIFACTS} next to {database}",
        )
    return now


def _settle(database: Path) -> None:
    """Updates the locations of artifacts in the database, so that new artifacts go to the same place."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for table, column in _LOCATIONS.items():
            if table in tables:
                rows = connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
                moved = [(now, uri) for (uri,) in rows if uri and (now := present_uri(uri, database)) != uri]
                connection.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", moved)


def _path(uri: str) -> Path:
    return Path(url2pathname(urlparse(uri).path))


def _explained(tracking_uri: str, error: Exception) -> UserError:
    """Returns a UserError that explains an error of MLflow in one line."""
    uri, text = (without_passwords(" ".join(str(part).split())) for part in (tracking_uri, error))
    if "database schema" in text:
        return UserError(
            "invalid_file",
            f"registry {uri}: its database belongs to another version of MLflow; back it up and run "
            f"mlflow db upgrade {uri}, or install the version of MLflow that wrote it",
        )
    if "pickle is disallowed" in text:
        return UserError(
            "damaged_file",
            f"registry {uri}: the model's file is damaged or contains pickled code; register it again",
        )
    if "Max retries exceeded" in text:
        return UserError(
            "unreachable",
            f"registry {uri}: no tracking server answers; start it or set another registry.tracking_uri",
        )
    return UserError("unreachable", f"registry {uri}: {text[:300]}")
