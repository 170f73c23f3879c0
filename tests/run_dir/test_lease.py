"""One driver at a time in a run directory; a dead one's lease ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lana_ray.errors import UserError
from lana_ray.run_dir import layout, lease
from lana_ray.run_dir.lease import held
from lana_ray.run_dir.storage import Storage

HOLDER = """
import sys, time
from lana_ray.run_dir.lease import held
from lana_ray.run_dir.storage import Storage
with held(Storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    monkeypatch.setattr(lease, "EXPIRES_S", 1.0)


def from_elsewhere(storage: Storage) -> dict[str, object]:
    """The lease as a driver on another machine would have written it."""
    other = {
        "id": "other",
        "host": "elsewhere",
        "machine": "elsewhere",
        "pid": 1,
        "started": "1",
        "renewed": 0,
    }
    storage.write_json(layout.LEASE, other)
    return other


def test_a_second_driver_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with held(storage) as check:
        with pytest.raises(UserError, match=rf"{tmp_path}: process {os.getpid()} on"), held(storage):
            pass
        check()
    assert not storage.exists(layout.LEASE)
    with held(storage) as check:
        check()


def test_a_killed_driver_leaves_no_lease(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=str(holder.pid)), held(Storage(str(tmp_path))):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with held(Storage(str(tmp_path))) as check:
        check()


@pytest.mark.usefixtures("quick")
def test_a_driver_elsewhere_is_alive_while_it_renews(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path))
    other = from_elsewhere(storage)
    begin = time.monotonic()
    with held(storage):  # never renewed
        assert time.monotonic() - begin >= 1.0
    assert str(tmp_path) in capsys.readouterr().out
    storage.write_json(layout.LEASE, other)
    renewing = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, sys, time\n"
            "path = sys.argv[1]\n"
            "lease = json.load(open(path))\n"
            "while True:\n"
            "    lease['renewed'] += 1\n"
            "    open(path + '.new', 'w').write(json.dumps(lease))\n"
            "    __import__('os').replace(path + '.new', path)\n"
            "    time.sleep(0.05)\n",
            str(tmp_path / layout.LEASE),
        ]
    )
    try:
        while storage.read_json(layout.LEASE) == other:
            time.sleep(0.02)
        with pytest.raises(UserError, match="elsewhere"), held(storage):
            pass
    finally:
        renewing.kill()
        renewing.wait()


def repeat(check: Callable[[], None]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        check()
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_who_lost_the_lease_is_stopped_and_leaves_the_other_s(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with held(storage) as check:
        other = {**storage.read_json(layout.LEASE), "id": "other"}
        storage.write_json(layout.LEASE, other)
        with pytest.raises(UserError, match=str(tmp_path)):
            repeat(check)
    assert storage.read_json(layout.LEASE)["id"] == "other"


def test_of_two_that_begin_together_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes its lease when both have seen that there is none."""
    storage = Storage(str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: from_elsewhere(storage))
    with pytest.raises(UserError, match="elsewhere"), held(storage):
        pass
    assert storage.read_json(layout.LEASE)["id"] == "other"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_lease_holds_nobody_up(tmp_path: Path, content: str) -> None:
    (tmp_path / layout.LEASE).write_text(content)
    with held(Storage(str(tmp_path))) as check:
        check()
