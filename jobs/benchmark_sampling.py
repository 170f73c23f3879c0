"""The ceiling of the sampling itself: how many samples a second arrive when measuring takes no time.

    python jobs/benchmark_sampling.py --samples 100000 --actors 1 --actors 8 --json sampling.json

With real measurements of half a second, an actor delivers two a second; a cluster is bound by its hardware as
long as its actors together stay below what this prints.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from rich.table import Table

from lana_ray.cluster import connect
from lana_ray.config import RayConfig, Target
from lana_ray.latency.fleet import Job, run_jobs
from lana_ray.latency.sampler import Work
from lana_ray.latency.store import Sample, SampleStore
from lana_ray.placement import Placement
from lana_ray.progress import console, progress
from lana_ray.storage import Storage

TEMPLATE = Sample(
    target="none",
    target_key="none",
    kind="network",
    key="",
    what="",
    median_ms=1.0,
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
    cpus="0",
    time=0.0,
)


class InstantSampler:
    """Answers without measuring anything."""

    def target_key(self) -> str:
        return TEMPLATE.target_key

    def sample(self, work: Sequence[Work], baselines_ms: Sequence[float]) -> Iterator[Sample]:
        if not baselines_ms:
            yield dataclasses.replace(TEMPLATE, kind="reference", key="teacher")
        for item in work:
            yield dataclasses.replace(TEMPLATE, key=item.key, what=item.what, time=time.time())


def main(
    samples: Annotated[int, typer.Option(min=1)] = 100_000,
    actors: Annotated[list[int] | None, typer.Option(help="How many samplers; may be repeated.")] = None,
    address: Annotated[str, typer.Option(help="Of a Ray cluster; local starts one.")] = "local",
    to: Annotated[Path | None, typer.Option("--json", help="Where the figures go as JSON.")] = None,
) -> None:
    """Prints samples per second and the driver's memory for several numbers of actors."""
    rows = []
    with connect(RayConfig(address=address)):
        for count in actors or [1, 8]:
            rows.append(_run(samples, count))
    table = Table(title=f"{samples:,} samples that take no time", title_justify="left")
    for heading in ("actors", "samples/s", "seconds", "driver's peak, MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.0f}" for value in row.values()))
    console.print(table)
    if to:
        to.write_text(json.dumps(rows, indent=1))


def _run(samples: int, actors: int) -> dict[str, float]:
    """One row; the clock starts with the first sample, when the actors are there."""
    work = [Work(kind="network", structure=f"s{k}", what="instant") for k in range(samples)]
    placement = Placement(
        nodes=(), actors=actors, label_selector=None, resources={}, num_cpus=0, num_gpus=0, stand_in=True
    )
    job = Job(target=Target(name="none"), placement=placement, work=work)
    started: list[float] = []
    with tempfile.TemporaryDirectory() as folder, progress(f"{actors} actors", samples) as show:

        def on_sample(job: Job) -> None:
            if job.done == 1:
                started.append(time.perf_counter())
            show(job.done)

        run_jobs([job], SampleStore(Storage(folder)), _start, on_sample)
        seconds = time.perf_counter() - started[0]
        assert len(SampleStore(Storage(folder)).read("none")) == samples + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"actors": actors, "samples_per_s": samples / seconds, "seconds": seconds, "driver_mb": peak}


def _start(job: Job) -> Any:
    return ray.remote(InstantSampler).options(num_cpus=0).remote()


if __name__ == "__main__":
    typer.run(main)
