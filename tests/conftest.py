"""Fixtures that several test modules share."""

from __future__ import annotations

import ctypes
import os
import sys

# Two test modules run at a time: torch's threads, of both and of the processes they start, would only wait
# for one another. It counts from the import of torch on.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Small runs mostly start processes, so those of a stage stay for the next one. In a run of minutes this saves
# no time, but takes 1.5 GB.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")

from collections.abc import Iterator

import pytest

from lana_ray.cluster import connection as cluster
from lana_ray.config import RayConfig

LONG = (
    "test_pipeline.py",
    "test_search.py",
    "test_processes.py",
    "test_verify.py",
    "test_readings.py",
    "test_trainers.py",
    "test_fleet.py",
    "test_families.py",
    "test_tasks.py",
    "test_server.py",
)
"""Modules of a minute and more, the longest first."""


OPT_IN = ("onprem", "postgresql")
"""Markers of tests that need more than Python and take minutes: for ``.ci/run``, not for plain ``pytest``."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Starts with long modules, so that what runs last beside nothing is short.

    Leaves opt-in tests out unless ``-m`` names their marker or the command line their module.
    """
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    expression = config.getoption("markexpr")
    modules = {config.invocation_params.dir / argument.partition("::")[0] for argument in config.args}

    def is_asked_for(item: pytest.Item) -> bool:
        markers = [name for name in OPT_IN if item.get_closest_marker(name)]
        return item.path in modules or all(name in expression for name in markers)

    config.hook.pytest_deselected(items=[item for item in items if not is_asked_for(item)])
    items[:] = [item for item in items if is_asked_for(item)]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for all tests: 2 CPUs and one measurable device, as on a small machine."""
    with cluster.connect(RayConfig(address="local"), num_cpus=2):
        yield


@pytest.fixture
def file_modes_bind() -> Iterator[None]:
    """Takes root's right to write anywhere from the test's thread, so that modes bind it as any user."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs modes of files")
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may write anywhere")
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same of the high half
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = effective
    assert libc.capset(header, sets) == 0


@pytest.fixture
def own_process() -> Iterator[None]:
    """Gives the test process its CPUs and torch's threads back, which measuring changes."""
    import torch

    threads = torch.get_num_threads()
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    yield
    torch.set_num_threads(threads)
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
