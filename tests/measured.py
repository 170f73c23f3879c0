"""A sample as a sampler takes it."""

from __future__ import annotations

import dataclasses
from typing import Any

from lana_ray.costs.samples import Sample

TAKEN = Sample(
    target="cpu",
    target_key="k",
    kind="candidate",
    key="c0",
    what="blocks.0=identity",
    median_ms=1.25,
    p90_ms=1.25,
    p99_ms=1.25,
    iqr_ms=0.5,
    raw_ms=1.5,
    drift=1.2,
    repeats=40,
    seconds=0.2,
    settled=True,
    error=None,
    node="here",
    processor="a processor",
    runtime="torch 2",
    threads=1,
    cpus="1",
    process=7,
    time=100.0,
)


def sample(**changes: Any) -> Sample:
    return dataclasses.replace(TAKEN, **changes)
