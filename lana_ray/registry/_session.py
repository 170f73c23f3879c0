"""An MLflow client that prints nothing, avoids the network if possible, and fails with one clear line."""

from __future__ import annotations

import logging
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lana_ray.errors import UserError
from lana_ray.redact import without_passwords
from lana_ray.registry._moved import settle

SQLITE = "sqlite:///"
_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # with MLflow's default of 7, a wrong address fails after minutes
}


@contextmanager
def session(tracking_uri: str, *, create: bool = False) -> Iterator[Any]:
    """Yields an ``MlflowClient`` for ``tracking_uri``, and makes it MLflow's global tracking URI meanwhile.

    MLflow resolves ``models:/`` URIs with its global tracking URI. Models that contain pickles are refused,
    whatever MLflow's own setting.

    Args:
        create: create a missing database, and update the locations of artifacts in a moved one; without it,
            a missing database is an error.

    Raises:
        UserError: any failure of MLflow, its server, database or files.
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
                settle(file)
            yield mlflow.MlflowClient()
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        # MLflow's own error would show the URI's password.
        raise _explained(tracking_uri, error) from None
    except ModuleNotFoundError as error:  # a database driver or a cloud's artifact client
        raise UserError(
            "missing_package", f"registry {tracking_uri}: needs the package {error.name}; install it"
        ) from None
    finally:
        if allowed is None:
            del os.environ[_PICKLE]
        else:
            os.environ[_PICKLE] = allowed
        logger.setLevel(level)
        mlflow.set_tracking_uri(previous)


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
    path = tracking_uri.removeprefix(SQLITE)
    return Path(path).absolute() if path != tracking_uri else None


def _check_database(tracking_uri: str, create: bool) -> None:
    """Raises UserError if an sqlite URI names no database; MLflow would retry for a minute, or create one."""
    file = database(tracking_uri)
    if file is None:
        return
    if not file.exists():
        if not create:
            raise UserError(
                "missing_file",
                f"registry {tracking_uri}: no such database; name the one in which a run registered models",
            )
        return
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
    except OSError as error:
        raise UserError(
            "invalid_file", f"registry {tracking_uri}: cannot be read ({error.strerror})"
        ) from None
    if head not in (b"", b"SQLite format 3\0"):
        raise UserError(
            "invalid_file",
            f"registry {tracking_uri}: not an SQLite database; set another registry.tracking_uri",
        )


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
