"""Shows the progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import codecs
import functools
import io
import os
import signal
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lana_ray.errors import UserError
from lana_ray.redact import without_passwords

_PLAIN, _RAISING = "lana_ray.plain", ("strict", "surrogateescape")
_SIMPLER = dict(zip("±×→−–—·…λß", "~x>---*.ls", strict=True))


def _simpler(error: UnicodeError) -> tuple[str, int]:
    """Replaces each character that an encoding lacks by one ASCII character, so that tables stay aligned."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    letters = (_SIMPLER.get(letter) or unicodedata.normalize("NFKD", letter)[0] for letter in missing)
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end


codecs.register_error(_PLAIN, _simpler)


def simplify(output: IO[str] | None) -> None:
    """Makes an output replace characters that its encoding lacks, unless the user chose otherwise."""
    if isinstance(output, io.TextIOWrapper) and not output.closed and output.errors in _RAISING:
        output.reconfigure(errors=_PLAIN)


class _Output(Console):
    """Prints to standard output, even if it lacks characters, is missing, closed, full or has no reader."""

    @property
    def file(self) -> IO[str]:
        file = super().file  # one that discards everything if there is no standard output
        simplify(file)
        return io.StringIO() if file.closed else file

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints objects; raises UserError if nothing can be written, as on a full disk."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._be_quiet()
            raise UserError(
                "not_writable", f"standard output: cannot be written ({error.strerror or error})"
            ) from None

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders a line, title or cell without the secrets in its URLs."""
        return super().render_str(without_passwords(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        """Ends the process quietly, as usual when a reader such as ``head`` stops reading."""
        self._be_quiet()
        raise SystemExit(128 + signal.SIGPIPE)

    def _be_quiet(self) -> None:
        """Stops all output, including what Python would flush at exit."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


console = _Output(highlight=False, width=None if _is_terminal() else 140)
"""Output for people; programs read the files of the run directory. Lines of a log may be long."""

_LINE_EVERY_S = 10.0
_ENOUGH = 3
"""Items after the first one before the time left is shown: the first waits for processes to start."""
_ENOUGH_SHARE = 0.05
"""Share of all items before the time left is shown."""


@contextmanager
def muted(descriptor: int) -> Iterator[None]:
    """Discards output that C++ writes directly to file descriptor 1 (stdout) or 2 (stderr)."""
    stream = {1: sys.__stdout__, 2: sys.__stderr__}[descriptor]
    # The descriptor of a closed stream may belong to another file by now.
    if stream is None or stream.closed:
        yield
        return
    stream.flush()
    kept = os.dup(descriptor)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def say(message: str) -> None:
    """Prints one line for people."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows progress; yields a function that sets how many of ``total`` items are done."""
    with progress_of({title: total}) as show:
        show(title, 0)
        yield lambda done: show(title, done)


@contextmanager
def progress_of(totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """Shows the progress of several things at once; yields a callback ``(title, done)``.

    The clock of each title starts with its first call.

    Args:
        totals: number of items by title.
    """
    totals = {title: total for title, total in totals.items() if total > 0}
    if not totals:
        yield lambda title, done: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=console) as bar:
            tasks = {title: bar.add_task(title, total=n, start=False, left="") for title, n in totals.items()}
            paces = {title: _Pace(total) for title, total in totals.items()}

            def show(title: str, done: int) -> None:
                if title in tasks:
                    bar.start_task(tasks[title])
                    bar.update(tasks[title], completed=done, left=paces[title].left(done))

            yield show
    else:
        line = functools.cache(lambda title: _plain_lines(title, totals[title]))
        yield lambda title, done: line(title)(done) if title in totals else None


class _Pace:
    """Estimates the time left from the recent pace.

    The clock starts with the first finished items: they waited for processes to start, or are left from an
    earlier run. The pace is that of the later half of the time since then, because kinds of items follow one
    another.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._points: deque[tuple[float, int]] = deque()
        """(seconds, items done), oldest first; begins with the last point of the earlier half of the time."""
        self._first: tuple[float, int] | None = None

    def left(self, done: int) -> str:
        """Returns the time left, such as ``1:20 left``; empty while the pace is unknown, and at the end."""
        now = time.monotonic()
        if done <= 0 or done >= self._total:
            return ""
        if self._first is None:
            self._first = (now, done)
        if not self._points or self._points[-1][1] < done:
            self._points.append((now, done))
        start, before = self._first
        while len(self._points) > 1 and self._points[1][0] <= (start + now) / 2:
            self._points.popleft()
        then, finished = self._points[0]
        if done - before < max(_ENOUGH, _ENOUGH_SHARE * self._total) or done == finished:
            return ""
        return f"{_clock((now - then) * (self._total - done) / (done - finished))} left"


def _plain_lines(title: str, total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    shown, pace = 0, _Pace(total)

    def update(done: int) -> None:
        nonlocal last, shown
        now, left = time.monotonic(), pace.left(done)
        if done == shown or (done < total and now - last < _LINE_EVERY_S):
            return
        last, shown = now, done
        times = ", ".join(filter(None, (f"{_clock(now - start)} elapsed", left)))
        say(f"{title} {done}/{total} ({100 * done / total:.0f} %), {times}")

    return update


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
