"""Causes faults during a run and prints a table of what became of each.

    python jobs/experiment_faults.py [--only disk] [--out faults.json]

Runs a recipe with few candidates and few steps, causes a fault at a known point, starts the same command
again if it ended, and compares: *kept* is the number of finished samples, candidates, evaluations and
students at the fault, *redone* how many of them were written again afterwards, which should be none. A disk
is filled or made read-only on its own file system in a file, which only root may mount, on Linux.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import breakable
import typer
from rich.table import Table

from lana_ray.monitoring.progress import console, say

RECIPE = Path(__file__).parent / "quickstart.yaml"
SMALL = (
    "teacher.adapt.epochs=2",
    "pool.ops=[identity, mbconv_e1_k3]",
    "pool.max_cost=null",
    "targets=[{name: ort-1t, runtime: onnxruntime, measure: {architectures: 16, time_limit_s: 0.1}}]",
    "budgets.latency_ms=[200%, 100%]",  # wide, since a machine busy with faults meets no tight ones
    "distill.group_size=2",  # several rounds, so that some can be lost
    "select.rounds=1",
    "finetune.epochs=2",
)
STAGES = {
    "teacher": r"teacher \d+/",
    "sample": "samples/*",
    "distill": "candidates/*",
    "score": "scores/*",
    "select": "evaluations/*",
    "finetune": r"finetune \d+/",
    "register": "mlartifacts/models/*",
    "report": "summary.json",
}
"""The first file that a stage writes, or the line it prints if it writes only at its end."""
FINISHED = ("samples/*", "candidates/*", "scores/*", "evaluations/*", "students/*", "teacher.safetensors")
_LONGEST_S = 900.0
_AWAY_S = 60.0
_STORE_BYTES = 80 * 2**20


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a fault."""

    fault: str
    status: int
    """Exit status of the process during the fault."""
    message: str
    kept: int
    redone: int
    ends: bool
    """Whether the run, started again if it ended, registers a student for every budget."""


@dataclass
class Run:
    """``lana-ray run`` on its own folder, in a process that can be watched and killed."""

    folder: Path
    log: Path
    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        overrides = [f"run.dir={self.folder}", *SMALL, *self.settings]
        command = [sys.executable, "-m", "lana_ray.cli", "run", str(RECIPE)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *(word for setting in overrides for word in ("--set", setting))],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, "COLUMNS": "200"},
            )

    def start_until(self, pattern: str) -> dict[Path, int]:
        """Starts it and waits for such a file; returns what is finished then."""
        self.start()
        self.wait_for(pattern)
        return self.finished()

    def wait_for(self, pattern: str) -> None:
        """Waits until a file appears that was not there before."""
        before = set(self.folder.glob(pattern))
        self._wait(lambda: bool(set(self.folder.glob(pattern)) - before), f"no {pattern} appeared")

    def wait_for_line(self, pattern: str) -> None:
        self._wait(lambda: re.search(pattern, self.log.read_text()) is not None, f"never printed {pattern}")

    def _wait(self, there: Callable[[], bool], otherwise: str) -> None:
        assert self.process is not None
        end = time.monotonic() + _LONGEST_S
        while not there():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{otherwise}:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=_LONGEST_S)

    def repeat(self) -> bool:
        """Runs the same command again; returns whether every budget has its registered student."""
        self.start()
        return self.end() == 0 and self.is_whole()

    def is_whole(self) -> bool:
        summary = self.folder / "summary.json"
        return summary.exists() and len(json.loads(summary.read_text())["results"]) == 2

    def finished(self) -> dict[Path, int]:
        """Returns when each finished artifact was written."""
        return {
            path: path.stat().st_mtime_ns
            for pattern in FINISHED
            for path in self.folder.glob(pattern)
            if not path.name.startswith(".")
        }

    def said(self, pattern: str) -> str:
        """Returns the last line that matches, else the last one."""
        lines = [line.strip() for line in self.log.read_text().splitlines() if line.strip()]
        return next((line for line in reversed(lines) if re.search(pattern, line)), lines[-1])

    def descendants(self, title: str) -> list[int]:
        assert self.process is not None
        return breakable.descendants(self.process.pid, title)


def redone(run: Run, before: dict[Path, int]) -> int:
    """Returns how many of the artifacts were lost or written again."""
    after = run.finished()
    return sum(after.get(path) != written for path, written in before.items())


def driver_killed(folder: Path) -> Iterator[Outcome]:
    """Kills one run in every stage."""
    run, there = Run(folder / "run", folder / "log"), dict[str, dict[Path, int]]()
    for stage, pattern in STAGES.items():
        run.start()
        (run.wait_for_line if pattern.startswith(stage) else run.wait_for)(pattern)
        run.kill()
        there[stage] = run.finished()
    ends = run.repeat()
    for stage, before in there.items():
        yield Outcome(
            fault=f"driver killed in {stage}",
            status=-signal.SIGKILL,
            message="",
            kept=len(before),
            redone=redone(run, before),
            ends=ends,
        )


def worker_killed(folder: Path) -> Iterator[Outcome]:
    """Kills a sampler, then a Ray Train worker, of one run."""
    run = Run(folder / "run", folder / "log")
    run.start()
    faults = []
    for fault, pattern, title, line in (
        ("sampler killed", "samples/*", "ray::SamplerActor", "sampler died"),
        ("Ray Train worker killed", "candidates/*", "ray::RayTrainWorker", r"worker \d+ died"),
    ):
        run.wait_for(pattern)
        before = run.finished()
        os.kill(run.descendants(title)[0], signal.SIGKILL)
        run.wait_for_line(line)
        faults.append((fault, before, run.said(line)))
    status = run.end()
    for fault, before, message in faults:
        yield Outcome(
            fault=fault,
            status=status,
            message=message,
            kept=len(before),
            redone=redone(run, before),
            ends=run.is_whole(),
        )


def node_removed(folder: Path) -> Iterator[Outcome]:
    """Removes the second of two nodes during distillation."""
    with breakable.cluster(num_cpus=1, labels={"lana.target": "ort-1t"}) as machines:
        second = machines.add_node(num_cpus=1)
        run = Run(folder / "run", folder / "log", (f"ray.address={machines.address}",))
        before = run.start_until("candidates/*")
        machines.remove_node(second, allow_graceful=False)
        yield _ended("node removed in distill", run, before, r"worker \d+ died")


def store_full(folder: Path) -> Iterator[Outcome]:
    """Fills a small object store several times with another job's objects, so that Ray spills."""
    import numpy as np
    import ray

    with breakable.cluster(num_cpus=2, object_store_memory=_STORE_BYTES) as machines:
        ray.init(address=machines.address, log_to_driver=False)
        run = Run(folder / "run", folder / "log", (f"ray.address={machines.address}",))
        before = run.start_until("samples/*")
        held = [ray.put(np.zeros(_STORE_BYTES // 8, np.uint8)) for _ in range(32)]
        outcome = _ended("object store four times full, spilled", run, before)
        assert all(len(ray.get(reference)) == _STORE_BYTES // 8 for reference in held)
        yield outcome


def disk_full(folder: Path) -> Iterator[Outcome]:
    """Fills the file system of the run directory to the last byte, then makes room again."""
    with breakable.file_system(folder) as disk:
        run = Run(disk.mount / "run", folder / "log")
        before, ballast = run.start_until("candidates/*"), disk.mount / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], capture_output=True)
        yield _ended("disk full from distill on", run, before, "lana-ray:", repair=ballast.unlink)


def disk_read_only(folder: Path) -> Iterator[Outcome]:
    """Makes the file system read-only, as the kernel does after an error; then checks and mounts it again."""
    with breakable.file_system(folder) as disk:
        run = Run(disk.mount / "run", folder / "log")
        before = run.start_until("candidates/*")
        subprocess.run(["mount", "-o", "remount,abort", str(disk.mount)], check=True)
        yield _ended("storage read-only from distill on", run, before, "lana-ray:", repair=disk.check)


def server_away(folder: Path) -> Iterator[Outcome]:
    """Stops the tracking server while stages run, and later when students register."""
    with breakable.server(folder) as server:
        run = Run(folder / "run", folder / "log", environment={"MLFLOW_TRACKING_URI": server.uri})
        before = run.start_until("candidates/*")
        server.stop()
        away = threading.Timer(_AWAY_S, server.start)
        away.start()
        yield _ended(f"MLflow away for {_AWAY_S:g} s", run, before, "tracking:")
        away.join()

        run.settings = ("finetune.epochs=1",)  # other students
        before = run.start_until("students/*")
        server.stop()
        yield _ended("MLflow away when students register", run, before, "lana-ray:", repair=server.start)


FAULTS: dict[str, Callable[[Path], Iterator[Outcome]]] = {
    "driver": driver_killed,
    "worker": worker_killed,
    "node": node_removed,
    "store": store_full,
    "disk": disk_full,
    "readonly": disk_read_only,
    "mlflow": server_away,
}


def _ended(
    fault: str, run: Run, before: dict[Path, int], line: str = "", repair: Callable[[], Any] = lambda: None
) -> Outcome:
    """Waits for the end of a run after a fault, repairs the fault and runs it again if it failed."""
    status = run.end()
    message = run.said(line) if line else ""
    repair()
    ends = run.is_whole() if status == 0 else run.repeat()
    return Outcome(
        fault=fault, status=status, message=message, kept=len(before), redone=redone(run, before), ends=ends
    )


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(FAULTS)}; may be repeated.")
    ] = None,
    out: Path | None = None,
) -> None:
    """Prints the table and writes it as JSON."""
    os.environ["RAY_AUTH_MODE"] = "token"
    # The token of the clusters started here.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    outcomes: list[Outcome] = []
    for name in only or FAULTS:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            for outcome in FAULTS[name](Path(folder)):
                say(str(outcome))
                outcomes.append(outcome)
    console.print(_table(outcomes))
    if out is not None:
        out.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("fault", "exit status", "kept", "redone", "ends whole", "message")
    for outcome in outcomes:
        ends = "yes" if outcome.ends else "no"
        counts = (str(outcome.status), str(outcome.kept), str(outcome.redone))
        table.add_row(outcome.fault, *counts, ends, outcome.message)
    return table


if __name__ == "__main__":
    typer.run(main)
