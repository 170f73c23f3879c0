"""Lines for people where there is no terminal, and a bar where there is one."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lana_ray.monitoring import progress as module
from lana_ray.monitoring.progress import progress, progress_of, say


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, set by the test."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "layer [blocks.1.0] " * 20
    say(long)
    assert capsys.readouterr().out == long + "\n"


LINES = """
from lana_ray.monitoring.progress import console, say
from lana_ray.report.table import results_table
from lana_ray.run_dir.summary import Result
say("Käse → \\udcff")
result = Result(
    target="cpu", budget="50%", budget_ms=0.5, predicted_ms=None, calibration=None, measured_ms=0.4,
    iqr_ms=0.01, teacher_ms=1.0, speedup=2.5, costs={}, params=1.0, macs=1.0, accuracy=0.9,
    validation_accuracy=0.9,
    accuracy_before=None, teacher_accuracy=0.91, architecture="", model_uri="models:/net-cpu/1", problem=None,
)
console.print(results_table("net", [result]))
for _ in range(5000):
    say("x" * 100)
"""


Written = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Runs ``LINES`` in a process whose standard output is what the shell says."""
    (tmp_path / "lines.py").write_text(LINES, encoding="utf-8")

    def run(shell: str = "{}", **variables: str) -> subprocess.CompletedProcess[bytes]:
        command = shell.format(shlex.join([sys.executable, str(tmp_path / "lines.py")]))
        environment = {**os.environ, "PYTHONUTF8": "0", **variables}
        return subprocess.run(["bash", "-c", command], env=environment, capture_output=True)

    return run


@pytest.mark.parametrize(
    ("encoding", "first", "others"),
    [
        ("ascii", "Kase > ?", ("0.400 ~ 0.010", "2.50x")),
        ("latin-1", "Käse > ?", ("0.400 ± 0.010", "2.50×")),
        ("cp1252", "Käse > ?", ("0.400 ± 0.010", "2.50×")),
        ("utf-8", "Käse → ?", ("0.400 ± 0.010", "2.50×")),
        ("C", "Kase > ?", ("0.400 ~ 0.010", "2.50x")),
    ],
)
def test_signs_that_an_encoding_lacks_are_made_simpler(
    encoding: str, first: str, others: tuple[str, str], written: Written
) -> None:
    if encoding == "C":
        done, encoding = written(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING=""), "ascii"
    else:
        done = written(PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding)
    assert shown.splitlines()[0] == first
    for other in others:
        assert other in shown


@pytest.mark.parametrize("where", [">&-", "<&- >&- 2>&-"])
def test_without_a_standard_output_all_goes_on(where: str, written: Written) -> None:
    assert written(f"{{}} {where}").returncode == 0


def test_whoever_is_read_no_more_ends_without_a_word(written: Written) -> None:
    done = written("{} | head -1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_is_named(written: Written) -> None:
    done = written("{} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"lana_ray.errors.UserError: standard output: cannot be")


def test_plain_lines_come_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("score", 40) as update:
        for done, seconds in [(0, 5), (1, 5), (10, 65), (11, 2), (20, 65), (40, 1), (40, 30)]:
            clock[0] += seconds
            update(done)
    assert capsys.readouterr().out.splitlines() == [
        "score 1/40 (2 %), 0:10 elapsed",
        "score 10/40 (25 %), 1:15 elapsed, 3:36 left",
        "score 20/40 (50 %), 2:22 elapsed, 2:14 left",
        "score 40/40 (100 %), 2:23 elapsed",
    ]


def test_of_several_things_each_has_a_clock_of_its_own(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_of({"a": 10, "b": 4, "nothing": 0}) as show:
        for title, done, seconds in [
            ("a", 0, 5),
            ("a", 2, 20),
            ("b", 0, 3),
            ("b", 1, 12),
            ("a", 6, 1),
            ("a", 10, 1),
            ("b", 4, 1),
        ]:
            clock[0] += seconds
            show(title, done)
        show("nothing", 0)
    assert capsys.readouterr().out.splitlines() == [
        "a 2/10 (20 %), 0:20 elapsed",
        "b 1/4 (25 %), 0:12 elapsed",
        "a 6/10 (60 %), 0:36 elapsed, 0:16 left",
        "a 10/10 (100 %), 0:37 elapsed",
        "b 4/4 (100 %), 0:15 elapsed",
    ]


def seconds_left(line: str) -> int | None:
    found = re.search(r"(\d+):(\d+) left", line)
    return 60 * int(found[1]) + int(found[2]) if found else None


def test_the_time_left_does_not_count_what_processes_take_to_start(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """A minute until the first of a hundred, then one every two seconds."""
    with progress("sample", 100) as update:
        clock[0] += 60
        for done in range(1, 101):
            update(done)
            clock[0] += 2
    lines = capsys.readouterr().out.splitlines()
    told = {int(line.split()[1].split("/")[0]): seconds_left(line) for line in lines}
    assert told.pop(1) is None
    assert told.pop(100) is None
    assert len(told) > 5
    for done, left in told.items():
        assert left == 2 * (100 - done)


def test_what_an_earlier_run_finished_says_nothing_of_the_pace(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("sample", 100) as update:
        update(90)
        for done in (91, 94, 95):
            clock[0] += 10 * (done - 90)
            update(done)
    assert [seconds_left(line) for line in capsys.readouterr().out.splitlines()] == [None, None, 50 * 5]


def test_the_time_left_follows_the_pace_of_late(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty quick ones, then slow ones."""
    with progress("sample", 100) as update:
        for done in range(1, 81):
            clock[0] += 1 if done <= 40 else 10
            update(done)
    assert seconds_left(capsys.readouterr().out.splitlines()[-1]) == pytest.approx(200, rel=0.01)


def test_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("score", 0) as update:
        update(0)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=screen, force_terminal=True, width=100))
    with progress("distill", 4) as update:
        update(4)
    with progress_of({"sample a": 7, "sample b": 9}) as show:
        show("sample b", 5)
    for shown in ("distill", "4/4", "sample a", "0/7", "sample b", "5/9"):
        assert shown in screen.getvalue()


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-"])
def test_what_is_written_past_python_is_muted_for_a_while(closed: str) -> None:
    code = """if True:
        import os, sys
        from lana_ray.monitoring.progress import muted
        for descriptor in (1, 2):
            with muted(descriptor):
                if (sys.__stdout__, sys.__stderr__)[descriptor - 1]:
                    os.write(descriptor, b"hidden")
            if (sys.__stdout__, sys.__stderr__)[descriptor - 1]:
                os.write(descriptor, b"shown")
    """
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == ("" if closed == ">&-" else "shown")
    assert done.stderr == ("" if closed == "2>&-" else "shown")
