"""Registries of a test's own, without the seconds that MLflow takes to create its tables."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from .students import register


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with MLflow's tables, which take seconds to create."""
    folder = tmp_path_factory.mktemp("empty")
    register(f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture
def uri(empty: Path, tmp_path: Path) -> str:
    """A registry of its own, in a folder whose name has signs that URIs escape."""
    folder = tmp_path / "run 50% #1"
    folder.mkdir()
    shutil.copy(empty / "mlflow.db", folder)
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.execute("DELETE FROM experiments")
    connection.close()
    return f"sqlite:///{folder}/mlflow.db"
