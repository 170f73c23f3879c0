"""How a run ends that is told to end: by Ctrl-C, by a scheduler's SIGTERM, by a terminal that is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SHELL = 128
"""Plus a signal's number: the exit status of what it ended."""


_received: list[signal.Signals] = []
"""Ray makes another exit status of the exception that passes through it."""


def ended_by(status: object) -> signal.Signals | None:
    """The signal that ended what ends with this exit status; None if none did."""
    return _received[0] if _received else signal.SIGINT if status == SHELL + signal.SIGINT else None


def end_as_exceptions_do() -> None:
    """Has signals end this process as an exception does: what it started ends with it.

    One that is ignored, as ``nohup`` does it, stays so.
    """
    for number in _endings():
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


@contextmanager
def terminated_as_before() -> Iterator[None]:
    """Gives SIGTERM the handler back that it had, if any; Ray puts its own there, which dumps a stack."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _endings() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _end(number: int, frame: FrameType | None) -> NoReturn:
    for other in _endings():  # a second one would interrupt the clearing up
        signal.signal(other, signal.SIG_IGN)
    _received.append(signal.Signals(number))
    raise SystemExit(SHELL + number)
