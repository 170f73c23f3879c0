"""A run directory that was moved or copied with its registry.

MLflow writes down where artifacts lie as absolute URIs, in a database that lies beside them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from lana_ray.errors import UserError

ARTIFACTS = "mlartifacts"
"""The folder beside a database."""
_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""The columns of MLflow's tables that hold URIs of artifacts."""


def location(database: Path) -> str:
    """The URI of the artifacts beside a database."""
    return (database.parent / ARTIFACTS).as_uri()


def present(uri: str, database: Path) -> str:
    """Where artifacts lie now: beside the database, unless they are only where ``uri`` says."""
    root, folder, rest = f"{uri}/".rpartition(f"/{ARTIFACTS}/")
    if not folder or not root.startswith("file:"):
        return uri
    old, new = _path(f"{root}/{ARTIFACTS}"), database.parent / ARTIFACTS
    if old.exists() and new.exists() and old.samefile(new):
        return uri
    below = url2pathname(rest)
    if (old / below).exists() and not (new / below).exists():
        return uri
    return f"{location(database)}/{rest}".rstrip("/")


def existing(uri: str, database: Path, what: str) -> str:
    """``present``, but raises UserError, naming ``what`` the artifacts are of, if they are not there."""
    now = present(uri, database)
    if now.startswith("file:") and not _path(now).exists():
        raise UserError(
            f"{what}: its files are not in {_path(now)}; were they moved or deleted? "
            f"Put the run's folder {ARTIFACTS} beside {database}"
        )
    return now


def settle(database: Path) -> None:
    """Writes where artifacts lie now into the database, so that new ones join them."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for table, column in _LOCATIONS.items():
            if table in tables:
                rows = connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
                moved = [(now, uri) for (uri,) in rows if uri and (now := present(uri, database)) != uri]
                connection.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", moved)


def _path(uri: str) -> Path:
    return Path(url2pathname(urlparse(uri).path))
