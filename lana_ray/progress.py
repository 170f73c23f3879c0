"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        with Progress(*columns, console=console) as bar:
            tasks = {title: bar.add_task(title, total=totals[title], start=False) for title in totals}

            def show(title: str, done: int) -> None:
                if title in tasks:
                    bar.start_task(tasks[title])
                    bar.update(tasks[title], completed=done)

            yield show
    else:
        lines: dict[str, Callable[[int], None]] = {}

        def tell(title: str, done: int) -> None:
            if title in totals:
                if title not in lines:
                    lines[title] = _plain_lines(title, totals[title])
                lines[title](done)

        yield tell


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
