"""The right to write to a run directory: one driver at a time, on whatever machine."""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage

BEAT_S = 15.0
"""How often the holder renews its lease."""
EXPIRES_S = 60.0
"""Without a renewal for so long, the holder is taken for dead."""
_LOOK_S = 1.0
_SETTLE_S = 0.2
"""After a lease is written, in which another driver that began at the same moment shows."""


@contextmanager
def held(storage: Storage) -> Iterator[Callable[[], None]]:
    """Holds the lease of a run directory; yields a check that raises UserError once another driver has it.

    A holder on this machine that died is found at once, one elsewhere by its missing renewals.

    Raises:
        UserError: another driver works in the directory, naming its machine and process.
    """
    _await_free(storage)
    mine = {"id": uuid.uuid4().hex, **_this_process(), "renewed": 0}
    storage.write_json(layout.LEASE, mine)
    time.sleep(_SETTLE_S)
    if (now := _read(storage) or mine)["id"] != mine["id"]:
        raise UserError("busy", _taken(storage, now))
    lost, ended = threading.Event(), threading.Event()

    def renew() -> None:
        failed = False
        while not ended.wait(BEAT_S):
            try:
                if (_read(storage) or mine)["id"] != mine["id"]:
                    lost.set()
                    return
                mine["renewed"] += 1
                storage.write_json(layout.LEASE, mine)
                failed = False
            except Exception as error:  # of any storage; another try follows, and the run itself fails on it
                if not failed:
                    say(f"run.dir {storage.root}: its lease cannot be renewed ({error})")
                failed = True

    def check() -> None:
        if lost.is_set():
            raise UserError(
                "busy",
                f"run.dir {storage.root}: another driver took it over while this one was suspended; "
                "run this command again once the other has ended",
            )

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
        if not lost.is_set():
            storage.remove(layout.LEASE)


def holder(storage: Storage) -> str | None:
    """The id of the lease that a run directory holds, None if it holds none."""
    found = _read(storage)
    return None if found is None else str(found["id"])


def _await_free(storage: Storage) -> None:
    """Returns once nobody holds the lease; raises UserError as soon as somebody is seen to."""
    first = _read(storage)
    if first is None or not _may_live(first):
        return
    if _is_here(first):
        raise UserError("busy", _taken(storage, first))
    say(f"run.dir {storage.root}: waiting up to {EXPIRES_S:g} s to see whether its last driver is alive")
    end = time.monotonic() + EXPIRES_S
    while time.monotonic() < end:
        time.sleep(min(_LOOK_S, EXPIRES_S / 10))
        now = _read(storage)
        if now is None:
            return
        if now != first:
            raise UserError("busy", _taken(storage, now))


def _taken(storage: Storage, holder: dict[str, Any]) -> str:
    return (
        f"run.dir {storage.root}: process {holder['pid']} on {holder['host']} is working in it; wait for it "
        "to end, or choose another run.dir"
    )


def _read(storage: Storage) -> dict[str, Any] | None:
    """The lease; None where there is none, or none that can be read: its writer renews it."""
    try:
        found = storage.read_json(layout.LEASE)
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and {"id", *_this_process()} <= found.keys() else None


def _may_live(holder: dict[str, Any]) -> bool:
    """False only for a process of this very machine that is known to be gone."""
    return not _is_here(holder) or _started(holder["pid"]) == holder["started"]


def _is_here(holder: dict[str, Any]) -> bool:
    return bool(holder["machine"] == _machine())


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": platform.node(), "machine": _machine(), "pid": pid, "started": _started(pid)}


def _machine() -> str:
    """Where process numbers mean the same: a boot of a machine, and in it a container."""
    parts = [platform.node()]
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        parts.append(str(uuid.getnode()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the system's own unit; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "another user's"
    return "running"
