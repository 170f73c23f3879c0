"""Finds the artifacts of a run directory that was moved or copied together with its registry.

MLflow stores the locations of artifacts as absolute URIs, in a database in the same directory.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from lana_ray.errors import UserError

ARTIFACTS = "mlartifacts"
"""The folder of artifacts next to a database."""
_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""The columns of MLflow's tables that hold URIs of artifacts."""


def location(database: Path) -> str:
    """Returns the URI of the folder of artifacts next to a database."""
    return (database.parent / ARTIFACTS).as_uri()


def present(uri: str, database: Path) -> str:
    """Returns the present URI of artifacts: next to the database, unless they exist only at ``uri``."""
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
    """Returns ``present(uri, database)``; raises UserError, naming the owner ``what``, if it is missing."""
    now = present(uri, database)
    if now.startswith("file:") and not _path(now).exists():
        raise UserError(
            "missing_file",
            f"{what}: its files are missing at {_path(now)}; if they were moved, put the run's folder "
            f"{ARTIFACTS} next to {database}",
        )
    return now


def settle(database: Path) -> None:
    """Updates the locations of artifacts in the database, so that new artifacts go to the same place."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for table, column in _LOCATIONS.items():
            if table in tables:
                rows = connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
                moved = [(now, uri) for (uri,) in rows if uri and (now := present(uri, database)) != uri]
                connection.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", moved)


def _path(uri: str) -> Path:
    return Path(url2pathname(urlparse(uri).path))
