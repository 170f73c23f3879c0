"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import codecs
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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from lana_ray.errors import UserError
from lana_ray.redact import without_passwords

_PLAIN, _RAISING = "lana_ray.plain", ("strict", "surrogateescape")
_SIMPLER = {
    "±": "~",
    "×": "x",
    "→": ">",
    "−": "-",
    "–": "-",
    "—": "-",
    "·": "*",
    "…": ".",
    "λ": "l",
    "ß": "s",
}


def _simpler(error: UnicodeError) -> tuple[str, int]:
    """A sign of ASCII for each one that an encoding lacks, so that tables keep their columns."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    letters = (_SIMPLER.get(sign) or unicodedata.normalize("NFKD", sign)[0] for sign in signs)
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end


codecs.register_error(_PLAIN, _simpler)


def simplify(output: IO[str] | None) -> None:
    """Has an output write simpler signs for those its encoding lacks, unless the user chose otherwise."""
    if isinstance(output, io.TextIOWrapper) and not output.closed and output.errors in _RAISING:
        output.reconfigure(errors=_PLAIN)


class _Output(Console):
    """Standard output as it is: without some signs, not there, closed, full, or read by nobody any more."""

    @property
    def file(self) -> IO[str]:
        file = super().file  # one that swallows all where there is no standard output
        simplify(file)
        return io.StringIO() if file.closed else file

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def print(self, *objects: Any, **options: Any) -> None:
        """Raises UserError where nothing can be written, as on a full disk."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._be_quiet()
            raise UserError(f"standard output: cannot be written ({error.strerror or error})") from None

    def render_str(self, text: str, **options: Any) -> Text:
        """Leaves secrets in URLs out of every line, title and cell."""
        return super().render_str(without_passwords(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        """Ends as programs do whose reader has seen enough, such as ``head``."""
        self._be_quiet()
        raise SystemExit(128 + signal.SIGPIPE)

    def _be_quiet(self) -> None:
        """Writes no more; nor does Python, which would try to at the end."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


console = _Output(highlight=False, width=None if _is_terminal() else 140)
"""Where people read; machines read the files of the run directory. Lines of a log may be long."""

_LINE_EVERY_S = 10.0
_ENOUGH = 3
"""Items after the first one before the time left is told: the first waits for processes to start."""
_ENOUGH_SHARE = 0.05
"""The same as a share of all items."""


@contextmanager
def muted(descriptor: int) -> Iterator[None]:
    """Discards what C++ writes to a file descriptor, past ``sys.stdout`` (1) and ``sys.stderr`` (2)."""
    stream = {1: sys.__stdout__, 2: sys.__stderr__}[descriptor]
    if stream is None or stream.closed:  # the descriptor may be that of any file by now
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
    """One line for people."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that sets how many of ``total`` are done."""
    with progress_of({title: total}) as show:
        show(title, 0)
        yield lambda done: show(title, done)


@contextmanager
def progress_of(totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """The same for several things at once: yields a function of the title and how many of its total are done.

    The clock of each starts when it is first told of.
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
        lines: dict[str, Callable[[int], None]] = {}

        def tell(title: str, done: int) -> None:
            if title in totals:
                if title not in lines:
                    lines[title] = _plain_lines(title, totals[title])
                lines[title](done)

        yield tell


class _Pace:
    """How fast items are finished of late, and what that makes of the rest.

    The clock starts with the first finished items: they waited for processes to start, or were there from an
    earlier run. From then on the pace is that of the later half of the time, since kinds of items follow one
    another.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._points: deque[tuple[float, int]] = deque()
        """(seconds, items done), oldest first, from the last one of the earlier half of the time."""
        self._first: tuple[float, int] | None = None

    def left(self, done: int) -> str:
        """``1:20 left``; empty until it means something, and in the end."""
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
        elapsed = f"{_clock(now - start)} elapsed"
        say(
            f"{title} {done}/{total} ({100 * done / total:.0f} %), {', '.join(filter(None, (elapsed, left)))}"
        )

    return update


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
