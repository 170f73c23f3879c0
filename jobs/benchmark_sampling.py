"""Measures how much of sampling's time is measuring, how well it repeats, and its maximum rate.

    python jobs/benchmark_sampling.py --samples 1000000 --actors 1 --actors 8 --actors 32 --json sampling.json

The first table is for real networks, random students of EfficientNet-Lite0, measured by one actor and by
more, each on its own cores. The second is for samples that take no time: the most that can arrive at the
driver. A cluster is limited by its hardware as long as its actors together deliver less.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import typer
from rich.table import Table

from lana_ray.cluster.connection import connect
from lana_ray.cluster.fleet import run_jobs
from lana_ray.cluster.job import Job, Progress, Ready
from lana_ray.cluster.placement import Placement
from lana_ray.cluster.samplers import Samplers
from lana_ray.config import Config, RayConfig, Target
from lana_ray.costs.cores import physical_cores
from lana_ray.costs.hardware import own_cpus
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.work import Work, in_sessions, network_work
from lana_ray.monitoring.progress import console, progress
from lana_ray.run_dir.storage import Storage
from lana_ray.workspace import structural_space

CLASSES, SESSIONS = 10, 3
TEMPLATE = Sample(
    target="none",
    target_key="none",
    kind="network",
    key="",
    what="",
    median_ms=1.0,
    p90_ms=1.0,
    p99_ms=1.0,
    iqr_ms=0.0,
    raw_ms=1.0,
    drift=1.0,
    repeats=1,
    seconds=0.0,
    settled=True,
    error=None,
    node="here",
    processor="none",
    runtime="none",
    threads=1,
    process=1,
    cpus="0",
    time=0.0,
)


class InstantSampler:
    """A sampler that answers without measuring anything."""

    def start(self) -> Ready:
        return Ready(target_key=TEMPLATE.target_key, node_id=ray.get_runtime_context().get_node_id())

    def sample(self, work: Sequence[Work], baselines_ms: Sequence[float]) -> Iterator[Progress]:
        if not baselines_ms:
            yield Progress(samples=(dataclasses.replace(TEMPLATE, kind="reference", key="teacher"),))
        done: tuple[Sample, ...] = ()
        for item in work:
            yield Progress(samples=done, begins=item.key)
            done = (dataclasses.replace(TEMPLATE, key=item.key, what=item.what, time=time.time()),)
        yield Progress(samples=done)


@dataclasses.dataclass(eq=False)
class _Instant:
    """One of them, for which there is always a place; and what hires it."""

    is_kept = False
    _actor: Any = None

    def room(self, job: Job, without: Collection[str]) -> int:
        return job.placement.actors

    def hire(self, job: Job, without: Collection[str]) -> _Instant:
        return _Instant(ray.remote(InstantSampler).options(num_cpus=0).remote())

    def actor(self) -> Any:
        return self._actor

    def release(self) -> None:
        ray.kill(self._actor)

    end = release


def main(
    samples: Annotated[int, typer.Option(min=1, help="Samples that take no time.")] = 100_000,
    actors: Annotated[list[int] | None, typer.Option(help="Actors for them; may be repeated.")] = None,
    networks: Annotated[int, typer.Option(min=0, help="Networks to measure; 0 leaves that out.")] = 20,
    runtime: Annotated[str, typer.Option(help="Runtime of the networks.")] = "torch",
    time_limit_s: Annotated[float, typer.Option(help="Time limit of one measurement.")] = 0.5,
    address: Annotated[str, typer.Option(help="Address of a Ray cluster; local starts one.")] = "local",
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints both tables."""
    with connect(RayConfig(address=address)):
        cores = len(physical_cores(own_cpus() or [0]))
        counts = [count for count in (1, 2, 4, 8) if networks and count <= cores]
        measured = [_measure(networks, count, runtime, time_limit_s) for count in counts]
        instant = [_answer(samples, count) for count in actors or [1, 8]]
    _show(
        f"{networks} networks, {SESSIONS} sessions of each, {runtime}",
        measured,
        {
            "actors": "{:.0f}",
            "samples_per_s": "{:.2f}",
            "share_measuring": "{:.1%}",
            "repeats_within": "{:.1%}",
            "repeats_within_p90": "{:.1%}",
        },
    )
    _show(
        f"{samples:,} samples that take no time",
        instant,
        {"actors": "{:.0f}", "samples_per_s": "{:,.0f}", "seconds": "{:,.0f}", "driver_mb": "{:,.0f}"},
    )
    if to:
        to.write_text(json.dumps({"measured": measured, "instant": instant}, indent=1))


def _show(title: str, rows: Sequence[dict[str, float]], formats: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left")
    for name in formats:
        table.add_column(name.replace("_per_s", "/s").replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(form.format(row[name]) for name, form in formats.items()))
    console.print(table)


def _job(target: Target, work: Sequence[Work], actors: int) -> Job:
    placement = Placement(
        nodes=("here",),
        actors=actors,
        label_selector=None,
        resources={},
        num_cpus=1,
        num_gpus=0,
        stand_in=True,
    )
    return Job(target=target, placement=placement, work=work, space="layers")


def _timed(job: Job, samplers: Any, folder: str) -> float:
    """Returns the seconds from the first sample to the last, without the start of the actors."""
    began: list[float] = []
    with progress(f"{job.placement.actors} actors", len(job.work)) as show:

        def on_sample(job: Job) -> None:
            if job.done and not began:
                began.append(time.perf_counter())
            show(job.done)

        run_jobs([job], SampleStore(Storage(folder)), samplers, on_sample)
    return time.perf_counter() - began[0]


def _measure(networks: int, actors: int, runtime: str, time_limit_s: float) -> dict[str, float]:
    """Returns a row of the first table: random students, measured in several sessions each."""
    measure = {"time_limit_s": time_limit_s, "architectures": 8}
    target = {"name": "here", "runtime": runtime, "input_shape": (3, 32, 32), "measure": measure}
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "run": {"dir": folder},
                "teacher": {"timm": "tf_efficientnet_lite0"},
                "data": {"source": "digits", "image_size": 32},
                "targets": [target],
                "budgets": {"latency_ms": "50%"},
            }
        )
        space = structural_space(config, CLASSES)
        rng = np.random.default_rng(0)
        work = [network_work(space, space.random(rng)) for _ in range(networks)]
        job = _job(config.targets[0], in_sessions(work, range(SESSIONS)), actors)
        samplers = Samplers(config, CLASSES)
        seconds = _timed(job, samplers, folder)
        samplers.close()
    samples = [job.samples[item.key] for item in job.work]
    latencies = np.array([sample.median_ms for sample in samples]).reshape(SESSIONS, networks)
    deviations = np.abs(latencies[1:] / latencies[0] - 1)
    return {
        "actors": actors,
        "samples_per_s": len(samples) / seconds,
        "share_measuring": sum(sample.seconds for sample in samples) / seconds / actors,
        "repeats_within": float(np.median(deviations)),
        "repeats_within_p90": float(np.percentile(deviations, 90)),
    }


def _answer(samples: int, actors: int) -> dict[str, float]:
    """Returns a row of the second table."""
    work = [Work(kind="network", structure=f"s{k}", what="instant") for k in range(samples)]
    with tempfile.TemporaryDirectory() as folder:
        seconds = _timed(
            _job(Target(name="none"), work, actors),
            _Instant(),
            folder,
        )
        assert len(SampleStore(Storage(folder)).read("none")) == samples + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"actors": actors, "samples_per_s": samples / seconds, "seconds": seconds, "driver_mb": peak}


if __name__ == "__main__":
    typer.run(main)
