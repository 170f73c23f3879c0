"""What the processes of a Ray Train job import first: the standard library and nothing else.

Ray Train's controller imports what it is given before it starts a worker, and the board runs beside both.
The worker's function therefore travels as bytes, which only the workers read: torch and timm take seconds to
import, and the controller needs neither.
"""

from __future__ import annotations

import pickle
from typing import Any


class Board:
    """Counts what the workers have done."""

    def __init__(self) -> None:
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count

    def done(self) -> int:
        return self._done


def run_worker(setting: dict[str, Any]) -> None:
    """Calls the function with its setting, both from ``setting["call"]`` as ``pickle.dumps`` made it."""
    worker, own = pickle.loads(setting["call"])
    worker({**own, "board": setting["board"]})
