"""A lease on the run directory, so that one driver at a time writes to it, whatever machine it runs on."""

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
"""Seconds between renewals of the lease."""
EXPIRES_S = 60.0
"""Seconds without a renewal after which the holder counts as dead."""
_SETTLE_S = 0.2
"""Seconds to wait after writing a lease, to notice a driver that started at the same moment."""


@contextmanager
def held(storage: Storage) -> Iterator[Callable[[], None]]:
    """Holds the lease; yields a check that raises UserError after another driver has taken it over.

    The death of a holder on this machine is noticed at once, of one elsewhere by its missing renewals.

    Raises:
        UserError: another driver uses the directory; names its machine and process.
    """
    _await_free(storage)
    own = {"id": uuid.uuid4().hex, **_this_process(), "renewed": 0}
    storage.write_json(layout.LEASE, own)
    time.sleep(_SETTLE_S)
    if (now := _read(storage) or own)["id"] != own["id"]:
        raise UserError("busy", _taken(storage, now))
    lost, ended = threading.Event(), threading.Event()

    def renew() -> None:
        failed = False
        while not ended.wait(BEAT_S):
            try:
                if (_read(storage) or own)["id"] != own["id"]:
                    lost.set()
                    return
                own["renewed"] += 1
                storage.write_json(layout.LEASE, own)
                failed = False
            except Exception as error:  # storages raise anything; the next beat tries again
                if not failed:
                    say(f"run.dir {storage.root}: the lease cannot be renewed ({error})")
                failed = True

    def check() -> None:
        if lost.is_set():
            raise UserError(
                "busy",
                f"run.dir {storage.root}: another driver took over while this one was suspended; wait for it "
                "to end, then rerun the same command; finished work is kept",
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
    """The id of the current lease on a run directory; None if there is none."""
    lease = _read(storage)
    return None if lease is None else str(lease["id"])


def _await_free(storage: Storage) -> None:
    """Returns when the lease is free; raises UserError as soon as its holder proves to be alive."""
    first = _read(storage)
    if first is None:
        return
    if first["machine"] == _machine():
        if _started(first["pid"]) == first["started"]:
            raise UserError("busy", _taken(storage, first))
        return
    say(
        f"run.dir {storage.root}: waiting up to {EXPIRES_S:g} s to see whether its last driver is still alive"
    )
    end = time.monotonic() + EXPIRES_S
    while time.monotonic() < end:
        time.sleep(EXPIRES_S / 60)
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
    """The lease; None if there is none or it cannot be read, since its holder soon writes it again."""
    try:
        lease = storage.read_json(layout.LEASE)
    except (FileNotFoundError, ValueError):
        return None
    return lease if isinstance(lease, dict) and {"id", *_this_process()} <= lease.keys() else None


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": platform.node(), "machine": _machine(), "pid": pid, "started": _started(pid)}


def _machine() -> str:
    """Identifies what shares process numbers: one boot of one machine, and one container on it."""
    parts = [platform.node()]
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:  # not Linux
        parts.append(str(uuid.getnode()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """The start time of a process on this machine, in the system's unit; None if it does not exist."""
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
