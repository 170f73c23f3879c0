"""Fixtures that several test modules share."""

from __future__ import annotations

import os

# Two test modules run at a time: torch's threads, of both and of the processes they start, would only wait
# for one another. It counts from the import of torch on.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest

from lana_ray import cluster
from lana_ray.config import RayConfig


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for all tests: 2 CPUs and one measurable device, as on a small machine."""
    with cluster.connect(RayConfig(address="local"), num_cpus=2):
        yield
