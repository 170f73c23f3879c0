"""Ends a run cleanly on Ctrl-C, on a scheduler's SIGTERM, and when its terminal is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SHELL = 128
"""Exit status of a process that a signal ended, minus the signal's number."""


_received: list[signal.Signals] = []
"""Signals received so far; recorded because Ray changes the exit status of an exception that passes it."""


def ended_by(status: object) -> signal.Signals | None:
    """Returns the signal that ended a process with this exit status; None if no signal did."""
    return _received[0] if _received else signal.SIGINT if status == SHELL + signal.SIGINT else None


def end_as_exceptions_do() -> None:
    """Makes signals end this process like an exception, so that everything it started ends with it.

    Ignored signals stay ignored, as under ``nohup``.
    """
    for number in _endings():
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


@contextmanager
def terminated_as_before() -> Iterator[None]:
    """Restores the handler of SIGTERM at the end: Ray installs one that dumps a stack trace."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _endings() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # A second signal would interrupt the clean-up.
    for other in _endings():
        signal.signal(other, signal.SIG_IGN)
    _received.append(signal.Signals(number))
    raise SystemExit(SHELL + number)
