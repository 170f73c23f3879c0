"""A registry that was moved or copied with its run directory, or from which things were deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from lana_ray import registry
from lana_ray.registry._session import artifacts_uri, present_uri

from ..errors import refuses
from .students import CLASSES, SHAPE, model, register, student


def folder_of(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///")).parent


def works(uri: str, model_uri: str) -> bool:
    """Whether a version and its teacher can be loaded, and a file of them read."""
    teacher_uri = registry.find(model_uri, uri).teacher_uri
    for found in (model_uri, teacher_uri):
        assert registry.load(found, uri)(torch.zeros(2, *SHAPE)).shape == (2, len(CLASSES))
        registry.download(found, "labels.json", folder_of(uri), uri).unlink()
    return True


@pytest.fixture
def moved(uri: str, tmp_path: Path) -> str:
    """A registry with a version, moved to another folder."""
    register(uri, student("a"))
    shutil.move(folder_of(uri), tmp_path / "moved 7% #2")
    return f"sqlite:///{tmp_path}/moved 7% #2/mlflow.db"


def test_what_was_moved_is_found_and_what_is_registered_there_joins_it(moved: str, uri: str) -> None:
    (version,) = registry.list_models(moved)
    assert works(moved, version.model_uri)
    other = student("b", target="other")
    (new,) = registry.register(
        [other], {"other": model()}, parent="p0", tracking_uri=moved, prefix="tiny/net"
    )
    assert works(moved, new.model_uri)
    assert not folder_of(uri).exists()
    mlflow.set_tracking_uri(moved)  # the plain client finds all of it as well, now that something was written
    try:
        for model_uri in (version.model_uri, new.model_uri):
            assert mlflow.pytorch.load_model(model_uri)(torch.zeros(1, *SHAPE)).shape == (1, len(CLASSES))
    finally:
        mlflow.set_tracking_uri(None)


def test_reading_changes_nothing(moved: str) -> None:
    file = folder_of(moved) / "mlflow.db"
    before = file.read_bytes()
    (version,) = registry.list_models(moved)
    assert works(moved, version.model_uri)
    assert file.read_bytes() == before


def test_a_copy_and_its_original_do_not_meet(uri: str, tmp_path: Path) -> None:
    register(uri, student("a"))
    original = sorted(folder_of(uri).rglob("*"))
    shutil.copytree(folder_of(uri), tmp_path / "copy")
    copy = f"sqlite:///{tmp_path}/copy/mlflow.db"
    register(copy, student("b"))
    assert sorted(folder_of(uri).rglob("*")) == original
    shutil.rmtree(folder_of(uri))
    for version in registry.list_models(copy):
        assert works(copy, version.model_uri)


def test_files_that_are_nowhere_are_told(moved: str) -> None:
    shutil.rmtree(folder_of(moved) / "mlartifacts")
    with refuses("missing_file", "models:/tiny-net-ort-1t/1", f"{folder_of(moved)}/mlartifacts"):
        registry.load("models:/tiny-net-ort-1t/1", moved)


def test_artifacts_lie_where_they_are(tmp_path: Path) -> None:
    old, new = tmp_path / "a", tmp_path / "b"
    database = new / "mlflow.db"
    (old / "mlartifacts" / "r1").mkdir(parents=True)
    (new / "mlartifacts" / "r2").mkdir(parents=True)
    (new / "mlartifacts" / "r3").mkdir()
    (old / "mlartifacts" / "r3").mkdir()
    uri, here = artifacts_uri(old / "mlflow.db"), artifacts_uri(database)
    assert present_uri(uri, database) == here
    assert present_uri(f"{uri}/r1/artifacts", database) == f"{here}/r1/artifacts"  # nothing was logged there
    assert present_uri(f"{uri}/r1", database) == f"{uri}/r1"
    assert present_uri(f"{uri}/r2", database) == f"{here}/r2"
    assert present_uri(f"{uri}/r3", database) == f"{here}/r3"
    for elsewhere in ("s3://bucket/mlartifacts/r1", "mlflow-artifacts:/1/r1", f"{old.as_uri()}/mlruns/r1"):
        assert present_uri(elsewhere, database) == elsewhere
    (tmp_path / "link").symlink_to(new)
    assert present_uri(f"{here}/r2", tmp_path / "link" / "mlflow.db") == f"{here}/r2"


def test_a_deleted_experiment_is_named_with_its_number(uri: str) -> None:
    register(uri, student("a"))
    store = SqlAlchemyStore(uri, "unused")
    number = store.get_experiment_by_name("tiny/net").experiment_id
    store.delete_experiment(number)
    with refuses("invalid_setting", "'tiny/net'", f" -x {number}, ", "registry.name"):
        register(uri, student("b"))
    store.restore_experiment(number)
    register(uri, student("b"))


def test_a_deleted_model_or_run_is_made_anew(uri: str) -> None:
    (version,) = register(uri, student("a"))
    client = mlflow.MlflowClient(uri)
    client.delete_registered_model(version.name)
    (again,) = register(uri, student("a"))
    assert works(uri, again.model_uri)
    client.delete_run(client.get_model_version(again.name, str(again.version)).run_id)
    client.delete_logged_model(again.tags["teacher_model"])
    client.delete_model_version(again.name, str(again.version))
    (last,) = register(uri, student("a"))
    assert works(uri, last.model_uri)
