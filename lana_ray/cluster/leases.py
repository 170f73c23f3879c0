"""Leases of this machine's cores: no two measurements share one, whichever run, process or user makes them.

Each physical core has a file in a directory that all users of a machine share, and whoever measures holds the
lock of each file of its cores. The kernel takes a lock back when its process ends, by ``kill -9`` too. The
threads of a core that run at once (hyper-threads) go together. Containers with a ``/tmp`` of their own know
nothing of one another: give each other CPUs.
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
_PARENTS = ("/tmp", "/dev/shm")  # which all users of a machine share
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Busy:
    """Why no lease was given: others hold the cores."""

    node: str
    holders: tuple[str, ...]
    """Who holds them: each a process and what it measures for."""
    own: bool
    """Whether one of them measures for the same as who asks: that is waited for without a limit."""


@dataclass(kw_only=True)
class Lease:
    """The right to measure on some CPUs, until it is released or the process ends."""

    cpus: tuple[int, ...]
    """Empty where the system does not keep processes on CPUs."""
    _locks: list[int] = field(default_factory=list)

    def pin(self) -> None:
        """Keeps the calling thread, and threads that it starts from now on, on these CPUs."""
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keeps the calling thread on these CPUs meanwhile, and gives them up at the end."""
        before = os.sched_getaffinity(0) if self.cpus else set()
        try:
            self.pin()
            yield
        finally:
            if before:
                os.sched_setaffinity(0, before)
            self.release()

    def release(self) -> None:
        """Gives the CPUs up."""
        for lock in self._locks:
            os.close(lock)
        self._locks = []


@dataclass
class Waiting:
    """A wait for cores: says for whom, now and then, and ends it."""

    what: str
    """Who waits, as the line begins: ``target 'edge'``."""
    _since: float = field(default_factory=time.monotonic)
    _said: float = -float("inf")

    def say(self, busy: Busy) -> None:
        """Raises UserError, naming who holds the cores, when the limit is reached."""
        now, minutes = time.monotonic(), round(LIMIT_S / 60)
        if busy.own:
            self._since = now
        whom = f"{self.what}: the cores of {busy.node} are held by {', '.join(busy.holders)}"
        if now - self._since >= LIMIT_S:
            raise UserError(f"{whom}; waited {minutes} minutes: run it again when that has ended")
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            say(f"{whom}; waiting until it has measured, at most {minutes} minutes")


@contextmanager
def leased(threads: int, what: str, owner: str) -> Iterator[None]:
    """Keeps the calling thread on CPUs that it leases meanwhile; says so while it waits for them.

    Args:
        what: who asks, as lines and errors begin.

    Raises:
        UserError: as ``lease`` and ``Waiting.say``.
    """
    waiting = Waiting(what)
    while isinstance(own := lease(threads, what, owner, wait_s=2 * _LOOK_EVERY_S), Busy):
        waiting.say(own)
    with own.used():
        yield


def lease(threads: int, what: str, owner: str, *, wait_s: float = 0.0) -> Lease | Busy:
    """Leases ``threads`` CPUs of those that the calling thread may use, one of each core if there are enough.

    They are of one kind and one processor where these have enough, the fastest kind first and the last CPUs
    first. Nothing is held while others hold too many.

    Args:
        what: who asks, as an error begins: ``target 'edge'``.
        owner: what is measured for, told to others who wait.
        wait_s: how long to look for free cores, in seconds.

    Raises:
        UserError: when there are fewer CPUs than threads, or no place for locks.
    """
    if not hasattr(os, "sched_getaffinity"):
        return Lease(cpus=())
    allowed = os.sched_getaffinity(0)
    among = suited(physical_cores(allowed), threads)
    if not among:
        raise UserError(f"{what}: threads {threads}, but it may use {len(allowed)} CPUs of {platform.node()}")
    folder, end = _folder(), time.monotonic() + wait_s
    while True:
        holders: dict[int, tuple[str, str]] = {}
        for cores in [*by_package(among), among]:
            if (found := _take(cores, threads, owner, folder, holders)) is not None:
                return found
        if time.monotonic() >= end:
            told = dict.fromkeys(holder for _, holder in sorted(holders.items()))
            own = owner in (purpose for _, purpose in told)
            return Busy(platform.node(), tuple(who for who, _ in told), own)
        time.sleep(random.uniform(0.5, 1.5) * _LOOK_EVERY_S)  # two who half hold what both want part ways


def held() -> list[str]:
    """Who measures on this machine now: processes and what they measure for."""
    found: dict[int, tuple[str, str]] = {}
    folder = _folder()
    for core in physical_cores(all_cpus()):
        if (lock := _try_lock(core, folder, found)) is not None:
            os.close(lock)
    return list(dict.fromkeys(who for who, _ in found.values()))


def _take(
    cores: Sequence[Core], threads: int, owner: str, folder: Path, holders: dict[int, tuple[str, str]]
) -> Lease | None:
    """Locks as many of the cores as it takes, or none; notes who holds others."""
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
    """The open file of a core, locked; None, and a note of who holds it, while another has it."""
    import fcntl  # not on Windows, where nothing is leased

    lock = _open(folder / f"core-{core.id}.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holders[core.id] = _holder(lock)
        os.close(lock)
        return None
    return lock


def _holder(lock: int) -> tuple[str, str]:
    """Who says in a lock's file that it holds it: process and purpose in words, and the purpose."""
    try:
        told = json.loads(os.pread(lock, _LONGEST, 0))
        process, owner = int(told["process"]), "".join(x for x in str(told["for"]) if x.isprintable())
    except (ValueError, KeyError, TypeError):  # just being written, or by whoever: any user may
        return "another process", ""
    return f"process {process} ({owner})", owner


def _open(path: Path) -> int:
    """Opens a lock's file, which every user of the machine can open: none is made anew where there is one, as
    systems forbid that for the files of others in a directory such as ``/tmp``."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: a core's lock cannot be opened ({error.strerror}); remove it") from None
    try:
        lock = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return _open(path)
    os.fchmod(lock, 0o666)  # whatever the umask
    return lock


def _folder() -> Path:
    """The directory of the locks: the same for all users of the machine, if one can be made that is."""
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
    raise UserError("no place for the locks of cores; make /tmp a directory that can be written")
