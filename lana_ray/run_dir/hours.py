"""Where the hours go: what every invocation spends in each stage, written down while it does.

Each invocation has a file of its own, ``hours/<when it began>-<random>.json``, which nobody else writes: a
run that was killed and resumed is the sum of its files. They are written when a stage begins and ends, by an
exception too, and every minute in between, so ``kill -9`` loses a minute at most.
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


@dataclass(kw_only=True)
class Spent:
    """On a stage."""

    seconds: float = 0.0
    node_seconds: float = 0.0
    """The same times the nodes that were there."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What one invocation spent, as far as it was written down."""

    stages: dict[str, Spent]
    """By name, in the order they began."""
    running: str | None
    """The stage in hand when the file was last written; one that was killed never writes that it ended."""


class Hours:
    """Counts what this invocation spends."""

    def __init__(
        self, storage: Storage, count_nodes: Callable[[], int | None], every_s: float = _EVERY_S
    ) -> None:
        """
        Args:
            count_nodes: how many nodes serve the run now, None where that is not known.
            every_s: seconds between two looks at the nodes, each written down.
        """
        self.stages: dict[str, Spent] = {}
        self._storage, self._count_nodes, self._every_s = storage, count_nodes, every_s
        self._file = layout.hours()
        self._nodes = 1  # the machine of this process, until others are known

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts a stage; those that are begun again add up."""
        spent = self.stages.setdefault(name, Spent())
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
            while not ended.wait(self._every_s):
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
        """Once Ray is gone, the nodes last seen are those that count."""
        self._nodes = self._count_nodes() or self._nodes

    def _write(self, *, running: str | None) -> None:
        """What cannot be written now is written next time: a run does not end over its own account."""
        try:
            self._storage.write_json(self._file, asdict(Invocation(stages=self.stages, running=running)))
        except UserError as error:
            say(f"hours: {error}")


def read_hours(storage: Storage) -> list[Invocation]:
    """Every invocation on this run directory, as they began; damaged files are named and left out."""
    files = storage.list(layout.HOURS, ".json")
    found = [storage.kept(name, _invocation, "its hours are not counted") for name in files]
    return [invocation for invocation in found if invocation is not None]


def _invocation(kept: Any) -> Invocation:
    stages = {stage: Spent(**spent) for stage, spent in kept["stages"].items()}
    return Invocation(stages=stages, running=kept["running"])
