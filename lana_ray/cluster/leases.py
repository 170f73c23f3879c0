"""Leases of this machine's cores: no two measurements share a core, across runs, processes and users.

Each physical core has a file in a directory that all users of the machine share; a measurement holds the
locks of its cores' files. The kernel releases a lock when its process ends, even by ``kill -9``. The
hyper-threads of a core are leased together. Containers with separate ``/tmp`` directories do not see each
other's leases: give them different CPUs.
"""

from __future__ import annotations

import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lana_ray.costs.cores import Core, all_cpus, by_package, physical_cores, suited
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say

LIMIT_S = 3600.0
"""How long a measurement waits for cores that others hold, in seconds."""
_SAY_EVERY_S = 60.0
_LOOK_EVERY_S = 0.5
_FOLDER = "lana_ray-cores"
_PARENTS = ("/tmp", "/dev/shm")  # shared by all users of a machine
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Busy:
    """The answer if no lease is free: who holds the cores."""

    node: str
    holders: tuple[str, ...]
    """Processes that hold the cores, each with the purpose of its measurement."""
    own: bool
    """Whether one of them has the purpose of the caller: that one is waited for without a limit."""


@dataclass(kw_only=True)
class Lease:
    """The exclusive right to measure on some CPUs, until it is released or the process ends."""

    cpus: tuple[int, ...]
    """Empty if the system cannot pin processes to CPUs."""
    _locks: list[int] = field(default_factory=list)

    def pin(self) -> None:
        """Pins the calling thread, and threads that it starts from now on, to these CPUs."""
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Pins the calling thread to these CPUs for the duration of the block, then releases them."""
        before = os.sched_getaffinity(0) if self.cpus else set()
        try:
            self.pin()
            yield
        finally:
            if before:
                os.sched_setaffinity(0, before)
            self.release()

    def release(self) -> None:
        """Releases the CPUs."""
        for lock in self._locks:
            os.close(lock)
        self._locks = []


@dataclass
class Waiting:
    """A wait for cores or a device, which is reported now and then, and has a time limit."""

    what: str
    """Who waits, such as ``target 'edge'``; begins the lines."""
    _since: float = field(default_factory=time.monotonic)
    _said: float = -float("inf")

    def say(self, busy: Busy) -> None:
        """Reports who holds the cores; raises UserError once the time limit is reached."""
        if busy.own:
            self._since = time.monotonic()
        self.report(f"the cores of {busy.node} are held by {', '.join(busy.holders)}", LIMIT_S)

    def report(self, reason: str, limit_s: float) -> None:
        """Reports the reason of the wait; raises UserError once it has lasted for ``limit_s``."""
        now, minutes = time.monotonic(), round(limit_s / 60)
        if now - self._since >= limit_s:
            raise UserError(
                "busy",
                f"{self.what}: {reason}; waited {minutes} minutes: rerun the same command when that ends",
            )
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            say(f"{self.what}: {reason}; waiting for at most {minutes} minutes")


@contextmanager
def leased(threads: int, what: str, owner: str) -> Iterator[None]:
    """Leases CPUs for the duration of the block and pins the calling thread to them; reports while it waits.

    Args:
        threads: number of CPUs.
        what: who asks, such as ``target 'edge'``; begins lines and errors.
        owner: purpose of the measurement, shown to others who wait.

    Raises:
        UserError: as ``lease`` and ``Waiting.say``.
    """
    waiting = Waiting(what)
    while isinstance(own := lease(threads, what, owner, wait_s=2 * _LOOK_EVERY_S), Busy):
        waiting.say(own)
    with own.used():
        yield


def lease(threads: int, what: str, owner: str, *, wait_s: float = 0.0) -> Lease | Busy:
    """Leases ``threads`` of the CPUs that the calling thread may use, one per core if there are enough cores.

    The CPUs are of one kind of core and on one processor if that has enough; the fastest kind and the last
    CPUs come first. No core is held while too few are free.

    Args:
        what: who asks, such as ``target 'edge'``; begins errors.
        owner: purpose of the measurement, shown to others who wait.
        wait_s: how long to look for free cores, in seconds.

    Raises:
        UserError: there are fewer CPUs than threads, or locks cannot be written.
    """
    if not hasattr(os, "sched_getaffinity"):
        return Lease(cpus=())
    allowed = os.sched_getaffinity(0)
    among = suited(physical_cores(allowed), threads)
    if not among:
        raise UserError(
            "unavailable",
            f"{what}: threads {threads}, but this process may use only {len(allowed)} CPUs of "
            f"{platform.node()}; lower threads or measure on a larger node",
        )
    folder, end = _folder(), time.monotonic() + wait_s
    while True:
        holders: dict[int, tuple[str, str]] = {}
        for cores in [*by_package(among), among]:
            if (leased_cores := _take(cores, threads, owner, folder, holders)) is not None:
                return leased_cores
        if time.monotonic() >= end:
            by_core = dict.fromkeys(holder for _, holder in sorted(holders.items()))
            own = owner in (purpose for _, purpose in by_core)
            return Busy(platform.node(), tuple(who for who, _ in by_core), own)
        # A random pause lets one of two processes win that each lock a part of the same cores.
        time.sleep(random.uniform(0.5, 1.5) * _LOOK_EVERY_S)


def held() -> list[str]:
    """Returns the processes that measure on this machine now, each with its purpose."""
    holders: dict[int, tuple[str, str]] = {}
    folder = _folder()
    for core in physical_cores(all_cpus()):
        if (lock := _try_lock(core, folder, holders)) is not None:
            os.close(lock)
    return list(dict.fromkeys(who for who, _ in holders.values()))


def _take(
    cores: Sequence[Core], threads: int, owner: str, folder: Path, holders: dict[int, tuple[str, str]]
) -> Lease | None:
    """Locks cores until they have ``threads`` CPUs, or none; adds who holds other cores to ``holders``."""
    cpus: list[int] = []
    locks: list[int] = []
    for core in cores:
        if len(cpus) < threads and (lock := _try_lock(core, folder, holders)) is not None:
            locks.append(lock)
            cpus += core.cpus
    if len(cpus) < threads:
        for lock in locks:
            os.close(lock)
        return None
    for lock in locks:
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"process": os.getpid(), "for": owner}).encode(), 0)
    return Lease(cpus=tuple(sorted(cpus[:threads])), _locks=locks)


def _try_lock(core: Core, folder: Path, holders: dict[int, tuple[str, str]]) -> int | None:
    """Returns a core's locked file; None if another process holds it, which is added to ``holders``."""
    import fcntl  # missing on Windows, which leases nothing

    lock = _open(folder / f"core-{core.id}.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holders[core.id] = _holder(lock)
        os.close(lock)
        return None
    return lock


def _holder(lock: int) -> tuple[str, str]:
    """Returns the holder written in a lock's file: process and purpose for people, and the purpose alone."""
    try:
        content = json.loads(os.pread(lock, _LONGEST, 0))
        process, owner = int(content["process"]), "".join(x for x in str(content["for"]) if x.isprintable())
    except (ValueError, KeyError, TypeError):
        # The file may be half written, and any user may write anything to it.
        return "another process", ""
    return f"process {process} ({owner})", owner


def _open(path: Path) -> int:
    """Opens a lock's file, which every user of the machine can open, and creates it if it is missing.

    An existing file is opened without ``O_CREAT``: systems forbid that flag for other users' files in a
    directory such as ``/tmp``.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            "not_writable", f"{path}: cannot open this core's lock ({error.strerror}); remove the file"
        ) from None
    try:
        lock = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return _open(path)
    os.fchmod(lock, 0o666)  # whatever the umask
    return lock


def _folder() -> Path:
    """Returns the directory of the locks: one that all users of the machine share, if possible."""
    for parent in dict.fromkeys((*_PARENTS, tempfile.gettempdir())):
        folder = Path(parent, _FOLDER)
        try:
            folder.mkdir()
            folder.chmod(0o1777)  # whatever the umask
        except FileExistsError:
            pass
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UserError("not_writable", "/tmp: cannot write the locks of cores there; make it writable")
