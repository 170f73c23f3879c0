"""What the processes of a Ray Train job import first: the standard library and nothing else.

Ray Train's controller imports what it is given before it starts a worker, and the board runs beside both.
The worker's function therefore travels as bytes, which only the workers read: torch and timm take seconds to
import, and the controller needs neither.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable
from typing import Any


class Board:
    """Hands out rounds of work to workers that name themselves, and counts the steps that are done."""

    def __init__(self, rounds: Iterable[Any] = ()) -> None:
        self._waiting = deque(rounds)
        self._held: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        self._done = 0
        self._lost: list[str] = []

    def join(self, worker: str) -> Any:
        """The round that the worker had in hand when it died, to be done again; None where it had none."""
        work = self._held.get(worker)
        if work is not None:
            self._done -= self._steps[worker]
            self._steps[worker] = 0
            self._lost.append(worker)
        return work

    def take(self, worker: str) -> Any:
        """Another round, the one in hand being finished; None when no more is left."""
        self._held.pop(worker, None)
        if not self._waiting:
            return None
        self._steps[worker] = 0
        self._held[worker] = self._waiting.popleft()
        return self._held[worker]

    def add(self, steps: int, worker: str = "") -> None:
        """Counts steps, those of a round under its worker's name."""
        self._done += steps
        self._steps[worker] = self._steps.get(worker, 0) + steps

    def news(self) -> tuple[int, list[str]]:
        """Steps done, and the workers that died with a round in hand since this was last asked."""
        lost, self._lost = self._lost, []
        return self._done, lost


def run_worker(setting: dict[str, Any]) -> None:
    """Calls the function with its setting, both from ``setting["call"]`` as ``pickle.dumps`` made it."""
    worker, own = pickle.loads(setting["call"])
    worker({**own, "board": setting["board"]})
