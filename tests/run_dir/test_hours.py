"""What a run has taken in all, also when it was killed or failed in between."""

from __future__ import annotations

import os
import time
from itertools import chain, repeat
from pathlib import Path

import pytest

from lana_ray.run_dir.hours import Hours, read_hours
from lana_ray.run_dir.storage import Storage


def test_invocations_add_up_also_those_that_fail(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(ValueError, match="broken"):
        fail(Hours(storage, lambda: None))
    second = Hours(storage, lambda: None)
    for _ in range(2):  # a stage that is begun again
        with second.stage("teacher"):
            time.sleep(0.02)
    failed, whole = read_hours(storage)
    assert list(failed.stages) == ["teacher", "sample"]
    assert failed.stages["sample"].seconds >= 0.03
    assert whole.stages["teacher"].seconds >= 0.04
    assert failed.running is whole.running is None
    assert whole.stages == second.stages


def fail(hours: Hours) -> None:
    with hours.stage("teacher"):
        pass
    with hours.stage("sample"):
        time.sleep(0.03)
        raise ValueError("broken")


def test_nodes_that_come_count_from_when_they_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lana_ray.run_dir.hours._EVERY_S", 0.1)
    nodes = chain([None, 3], repeat(None))
    hours = Hours(Storage(str(tmp_path)), lambda: next(nodes))
    with hours.stage("distill"):
        time.sleep(0.25)
    spent = hours.stages["distill"]
    assert spent.seconds < spent.node_seconds < 3 * spent.seconds
    with hours.stage("register"):  # disconnected: those last seen
        time.sleep(0.01)
    spent = hours.stages["register"]
    assert spent.node_seconds == pytest.approx(3 * spent.seconds)


def test_what_is_counted_so_far_is_there_if_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lana_ray.run_dir.hours._EVERY_S", 0.01)
    storage = Storage(str(tmp_path))
    hours = Hours(storage, lambda: 2)
    with hours.stage("distill"):
        for _ in range(500):
            (left_behind,) = read_hours(storage)
            if left_behind.stages["distill"].seconds > 0.02:
                break
            time.sleep(0.01)
    assert left_behind.running == "distill"
    spent = left_behind.stages["distill"]
    assert 0.02 < spent.seconds < hours.stages["distill"].seconds
    assert spent.node_seconds == pytest.approx(2 * spent.seconds)


def test_a_directory_that_cannot_be_written_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with Hours(Storage(str(tmp_path)), lambda: 1).stage("teacher"):
        pass
    assert "cannot be written (No space left on device)" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", '{"stages": {"teacher": {"sec": 1}}}', '{"stages": {}}'])
def test_a_damaged_file_is_named_and_left_out(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path))
    with Hours(storage, lambda: 1).stage("teacher"):
        pass
    storage.write_text("hours/1.json", content)
    (found,) = read_hours(storage)
    assert list(found.stages) == ["teacher"]
    assert "hours/1.json: damaged" in capsys.readouterr().out
