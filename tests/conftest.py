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

LONG = (
    "test_pipeline.py",
    "test_resume.py",
    "test_search.py",
    "test_meter.py",
    "test_fleet.py",
    "test_fit.py",
    "test_sweep.py",
    "test_nodes.py",
    "test_worker.py",
    "test_server.py",
)
"""Modules of a minute and more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules begin first, so that what runs last beside nothing is short."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for all tests: 2 CPUs and one measurable device, as on a small machine."""
    with cluster.connect(RayConfig(address="local"), num_cpus=2):
        yield
