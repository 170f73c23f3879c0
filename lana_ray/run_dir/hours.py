"""Records the time that every invocation spends in each stage.

Each invocation writes its own file, ``hours/<start>-<random>.json``; a run that was killed and resumed took
the sum of its files. A file is written when a stage begins or ends, even by an exception, and every minute in
between, so ``kill -9`` loses a minute at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage

_EVERY_S = 60.0
"""Seconds between two writes; the nodes are counted again each time."""


@dataclass(kw_only=True)
class StageTime:
    """Time spent on a stage."""

    seconds: float = 0.0
    node_seconds: float = 0.0
    """Seconds, multiplied by the number of nodes in the cluster at the time."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """The recorded time of one invocation."""

    stages: dict[str, StageTime]
    """Time by stage name, in the order in which the stages began."""
    running: str | None
    """The stage that was running at the last write; it stays set if the invocation was killed."""


class Hours:
    """Records the time of this invocation; ``count_nodes`` returns the cluster's nodes, None if unknown."""

    def __init__(self, storage: Storage, count_nodes: Callable[[], int | None]) -> None:
        self.stages: dict[str, StageTime] = {}
        self._storage, self._count_nodes = storage, count_nodes
        self._file = layout.hours()
        self._nodes = 1  # this machine, until the cluster is known

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; a stage that runs several times adds up."""
        spent = self.stages.setdefault(name, StageTime())
        self._look()
        since = time.monotonic()
        self._write(running=name)
        ended = threading.Event()

        def add() -> None:
            nonlocal since
            now = time.monotonic()
            spent.seconds += now - since
            spent.node_seconds += (now - since) * self._nodes
            since = now

        def keep() -> None:
            while not ended.wait(_EVERY_S):
                add()
                self._look()
                self._write(running=name)

        keeper = threading.Thread(target=keep, name=f"hours of {name}", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            add()
            self._write(running=None)

    def _look(self) -> None:
        # Once Ray has shut down, the last known number of nodes counts.
        self._nodes = self._count_nodes() or self._nodes

    def _write(self, *, running: str | None) -> None:
        # The next write repeats everything, so a failed one must not end the run.
        try:
            self._storage.write_json(self._file, asdict(Invocation(stages=self.stages, running=running)))
        except UserError as error:
            say(f"hours: {error}")


def read_hours(storage: Storage) -> list[Invocation]:
    """Every invocation on this run directory, oldest first; damaged files are reported and left out."""
    files = storage.list(layout.HOURS, ".json")
    read = [storage.kept(name, _invocation, "its hours are not counted") for name in files]
    return [invocation for invocation in read if invocation is not None]


def _invocation(kept: Any) -> Invocation:
    stages = {stage: StageTime(**spent) for stage, spent in kept["stages"].items()}
    return Invocation(stages=stages, running=kept["running"])
