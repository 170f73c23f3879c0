"""Leases of cores, between processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lana_ray.cluster import leases
from lana_ray.cluster.leases import Busy, Lease, Waiting, held, lease, leased
from lana_ray.costs.cores import Core

from ..errors import refuses

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes"),
    pytest.mark.usefixtures("own_process"),
]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The locks of this test's own."""
    monkeypatch.setattr(leases, "_PARENTS", (str(tmp_path),))
    return tmp_path / "lana_ray-cores"


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores with two threads each, on two processors."""
    cores = [Core(id=k, cpus=(k, k + 4), package=k // 2, speed=0) for k in range(4)]
    monkeypatch.setattr(leases, "physical_cores", lambda allowed: cores)


def taken(threads: int, owner: str = "runs/own") -> Lease:
    found = lease(threads, "it", owner)
    assert isinstance(found, Lease), found
    return found


class Other:
    """Another process that holds a lease."""

    def __init__(self, threads: int, owner: str) -> None:
        self._told, telling = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._hold, args=(threads, owner, telling), daemon=True)
        self.process.start()
        self.cpus: tuple[int, ...] = self._told.recv()

    @staticmethod
    def _hold(threads: int, owner: str, telling: object) -> None:
        own = taken(threads, owner)
        telling.send(own.cpus)  # type: ignore[attr-defined]
        time.sleep(600)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def other(four: None) -> Iterator[Other]:
    """Holds three of the four cores."""
    found = Other(3, "runs/other")
    yield found
    found.kill()


def test_processes_get_cores_of_their_own_and_those_of_the_dead_are_free_again(other: Other) -> None:
    assert other.cpus == (1, 2, 3)  # one of each core: none is left of theirs
    own = taken(1)
    assert own.cpus == (0,)
    busy = lease(1, "it", "runs/third")
    assert isinstance(busy, Busy)
    assert busy.holders == (f"process {os.getpid()} (runs/own)", f"process {other.process.pid} (runs/other)")
    assert not busy.own
    own.release()
    assert taken(1).cpus == (0,)
    other.kill()
    assert taken(2).cpus == (2, 3)


def test_whoever_waits_holds_nothing(other: Other) -> None:
    busy = lease(2, "it", "runs/other")
    assert isinstance(busy, Busy)
    assert busy.own  # another measurement of the same run
    assert taken(1).cpus == (0,)


def test_the_cores_of_one_processor_go_together_if_they_can(four: None) -> None:
    first = taken(1)
    assert first.cpus == (3,)
    assert taken(2).cpus == (0, 1)
    first.release()
    assert taken(2).cpus == (2, 3)


def test_what_waits_is_said_and_ends(
    other: Other, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = lease(2, "it", "runs/own")
    assert isinstance(busy, Busy)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    waiting = Waiting("target 'edge'")
    for seconds in (0, 5, 60, 5):
        clock[0] += seconds
        waiting.say(busy)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    for words in ("target 'edge'", f"process {other.process.pid} (runs/other)"):
        assert words in said[0]
    clock[0] += leases.LIMIT_S
    waiting.say(Busy(busy.node, busy.holders, own=True))  # measurements of the same run end
    clock[0] += leases.LIMIT_S
    with refuses("busy", "target 'edge'", f"process {other.process.pid} (runs/other)"):
        waiting.say(busy)


def test_a_wait_ends_when_the_cores_are_free(
    other: Other, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(Lease, "pin", lambda self: None)  # this machine may have fewer cores
    monkeypatch.setattr(leases, "say", lambda line: other.kill())
    with leased(2, "it", "runs/own"):
        assert len(held()) == 1
    assert held() == []


def test_a_process_is_kept_on_its_cores_meanwhile() -> None:
    before = os.sched_getaffinity(0)
    with leased(1, "it", "runs/own"):
        assert len(os.sched_getaffinity(0)) == 1
        assert held() == [f"process {os.getpid()} (runs/own)"]
    assert (os.sched_getaffinity(0), held()) == (before, [])
    with refuses("unavailable", "it: threads 4096"), leased(4096, "it", "runs/own"):
        pass


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_every_user_can_open_the_locks(folder: Path, four: None, mask: int) -> None:
    before = os.umask(mask)
    try:
        taken(1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o666]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"process": "x", "for": 1}', "\0" * 9000])
def test_a_lock_of_unknown_content_is_held_by_somebody(folder: Path, four: None, text: str) -> None:
    locks = [taken(1) for _ in range(4)]
    for file in folder.iterdir():
        file.write_text(text)
    busy = lease(1, "it", "")
    assert isinstance(busy, Busy)
    assert busy.holders == ("another process",)
    for own in locks:
        own.release()


def test_control_signs_of_others_are_not_printed(folder: Path, four: None) -> None:
    locks = [taken(2), taken(2)]
    for file in folder.iterdir():
        file.write_text(json.dumps({"process": 7, "for": "runs/\x1b[31mred\n"}))
    busy = lease(1, "it", "")
    assert isinstance(busy, Busy)
    assert busy.holders == ("process 7 (runs/[31mred)",)
    for own in locks:
        own.release()


def test_a_place_is_found_where_the_first_cannot_be_written(
    tmp_path: Path, four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(leases, "_PARENTS", (str(tmp_path / "file"), str(tmp_path / "absent"), str(tmp_path)))
    taken(1)
    assert len(list((tmp_path / "lana_ray-cores").iterdir())) == 1
