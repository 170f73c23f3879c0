"""Measures what each worker of a distillation loses if one of them is killed, and if a node joins.

    python jobs/experiment_deaths.py [--steps 800] [--out deaths.json]

Distils the quickstart's candidates with two workers, on two nodes of one CPU each, in rounds that last for
minutes. A worker is killed, and in another run a node of one CPU joins, 100 s after both workers began. Ray
Train starts all of its workers again in both cases. *Repeated* is the work since a worker's last save, at the
speed that it had; *idle* is the time from its last step to its next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import breakable
import typer
from rich.table import Table

from lana_ray.cluster import trainers as driver
from lana_ray.cluster.authentication import authenticated
from lana_ray.cluster.launch import Board
from lana_ray.config import load_config
from lana_ray.monitoring.progress import console, say
from lana_ray.pipeline import run

RECIPE = Path(__file__).parent / "quickstart.yaml"
SETTINGS = (
    "teacher.adapt.epochs=2",
    "targets=[{name: ort-1t, runtime: onnxruntime, measure: {architectures: 16, time_limit_s: 0.1}}]",
    "ray.workers=2",
    "ray.cpus_per_worker=1",
)
WORKERS = ("worker 0", "worker 1")
_AFTER_S = 100.0
_LONGEST_S = 1200.0


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Time that one worker lost by a fault."""

    fault: str
    worker: str
    repeated_s: float
    """Seconds of work done again."""
    idle_s: float


def recording(path: Path) -> type[Board]:
    """Returns a board that logs each worker's steps, and how many it has when it starts again."""

    class Recording(Board):
        def join(self, worker: str) -> Any:
            work = super().join(worker)
            self._note(worker, "join", 0)
            return work

        def add(self, steps: int, worker: str) -> None:
            super().add(steps, worker)
            self._note(worker, "add", steps)

        def take(self, worker: str) -> Any:
            work = super().take(worker)
            self._note(worker, "take", 0)
            return work

        def _note(self, worker: str, event: str, steps: int) -> None:
            with path.open("a") as file:
                file.write(json.dumps([time.time(), worker, event, steps]) + "\n")

    return Recording


def read(path: Path) -> dict[str, list[tuple[float, str, int]]]:
    """Reads the log of each worker: time, event and steps."""
    events = defaultdict(list)
    for line in path.read_text().splitlines() if path.exists() else ():
        when, worker, event, steps = json.loads(line)
        events[worker].append((when, event, steps))
    return events


def losses(fault: str, history: dict[str, list[tuple[float, str, int]]], broken_at: float) -> list[Loss]:
    """Returns the losses of every worker that was running at the fault."""
    rows = []
    for worker in WORKERS:
        events = history[worker]
        back = next(k for k, (when, event, _) in enumerate(events) if event == "join" and when > broken_at)
        begun = max(k for k in range(back) if events[k][1] == "take")
        # The first two counts of a round are of finished candidates and of saved states.
        before, after = events[begun + 3 : back], events[back + 1 :]
        done = sum(steps for _, _, steps in before)
        saved = sum(steps for _, _, steps in after[:2])
        speed = (done - before[0][2]) / (before[-1][0] - before[0][0])
        repeated, idle = (done - saved) / speed, after[2][0] - before[-1][0]
        rows.append(Loss(fault=fault, worker=worker, repeated_s=repeated, idle_s=idle))
    return rows


def kill_worker(machines: Any, second: Any) -> list[subprocess.Popen[bytes]]:
    """Kills the worker on the second node."""
    raylet = second.all_processes["raylet"][0].process.pid
    os.kill(breakable.descendants(raylet, "ray::RayTrainWorker")[0], signal.SIGKILL)
    return []


def add_node(machines: Any, second: Any) -> list[subprocess.Popen[bytes]]:
    """Starts a node in a process of its own, since Ray starts nodes of this one in the main thread only."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={machines.address}"]
    return [subprocess.Popen([*command, "--num-cpus=1", "--block"], stdout=subprocess.DEVNULL)]


FAULTS: dict[str, tuple[Callable[[Any, Any], list[subprocess.Popen[bytes]]], tuple[str, ...]]] = {
    "a worker is killed": (kill_worker, ()),
    "a node joins": (add_node, ("ray.workers=3",)),
}


def measured(fault: str, steps: int, folder: Path) -> list[Loss]:
    """Runs the recipe up to its distillation and causes the fault in the middle."""
    break_it, settings = FAULTS[fault]
    notes, broken, started = folder / "notes", list[float](), list[subprocess.Popen[bytes]]()
    with breakable.cluster(num_cpus=1, labels={"lana.target": "ort-1t", "lana.role": "both"}) as machines:
        second = machines.add_node(num_cpus=1)
        overrides = (f"run.dir={folder}/run", f"ray.address={machines.address}", f"distill.steps={steps}")
        config = load_config(RECIPE, (*SETTINGS, *overrides, *settings))

        def wait_and_break() -> None:
            end = time.monotonic() + _LONGEST_S
            while not all(any(e == "add" and n for _, e, n in read(notes)[name]) for name in WORKERS):
                if time.monotonic() > end:
                    return
                time.sleep(0.5)
            time.sleep(_AFTER_S)
            broken.append(time.time())
            say(f"{fault} now")
            started.extend(break_it(machines, second))

        driver.Board = recording(notes)  # type: ignore[attr-defined]
        threading.Thread(target=wait_and_break, daemon=True).start()
        run(config, until="distill")
        for process in started:
            process.terminate()
            process.wait()
    return losses(fault, read(notes), broken[0])


def main(steps: int = 800, out: Path | None = None) -> None:
    """Prints the table and writes it as JSON."""
    rows: list[Loss] = []
    for fault in FAULTS:
        with authenticated(create=True), tempfile.TemporaryDirectory(prefix="deaths-") as folder:
            rows += measured(fault, steps, Path(folder))
    table = Table("fault", "worker", "work repeated (s)", "idle (s)")
    for loss in rows:
        table.add_row(loss.fault, loss.worker, f"{loss.repeated_s:.0f}", f"{loss.idle_s:.0f}")
    console.print(table)
    if out is not None:
        out.write_text(json.dumps([asdict(loss) for loss in rows], indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
