"""Folders that Ray cannot use, and what is used in their place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from lana_ray.cluster import scratch
from lana_ray.cluster.scratch import ray_folder

from ..errors import refuses


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_the_folder_is_the_environments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", "/proc/nothing")
        monkeypatch.setenv(name, folder)
        assert ray_folder() == f"{folder}/ray"


@pytest.mark.parametrize("empty", ["RAY_TMPDIR", "TMPDIR"])
def test_an_empty_variable_names_no_folder(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(empty, "")
    assert ray_folder() == "/tmp/ray"


@pytest.mark.parametrize("kind", ["long", "a file", "not writable"])
def test_a_folder_of_no_use_is_told_and_another_taken(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"long": str(tmp_path / ("d" * 60)), "a file": "/etc/passwd", "not writable": "/proc/sys"}[kind]
    monkeypatch.setenv("TMPDIR", place)
    assert ray_folder() == "/tmp/ray"
    said = capsys.readouterr().out
    assert said.startswith(f"TMPDIR {place} ")
    assert said.count("\n") == 1


def test_a_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("TMPDIR", "own")
        assert ray_folder() == f"{folder}/own/ray"


def test_where_no_folder_is_of_use_each_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/sys")
    monkeypatch.setattr(scratch, "_useless", lambda place: "is full")
    with refuses("not_writable", "/proc/sys is full", "/tmp is full", "TMPDIR"):
        ray_folder()
