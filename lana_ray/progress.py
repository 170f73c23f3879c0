"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
"""Where people read; machines read the files of the run directory. Lines of a log may be long."""

_LINE_EVERY_S = 10.0


def say(message: str) -> None:
    """One line for people."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that sets how many of ``total`` are done."""
    if total <= 0:
        yield lambda _: None
    elif console.is_terminal:
        columns = (
            TextColumn(f"{title:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield _plain_lines(title, total)


def _plain_lines(title: str, total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    shown = 0

    def update(done: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if done == shown or (done < total and now - last < _LINE_EVERY_S):
            return
        last, shown = now, done
        left = (now - start) * (total - done) / done if done else float("nan")
        ending = f", {_clock(left)} left" if 0 < done < total else ""
        say(f"{title} {done}/{total} ({100 * done / total:.0f} %), {_clock(now - start)} elapsed{ending}")

    return update


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
