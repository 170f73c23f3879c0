"""Physical cores as the system tells of them, from folders written like Linux's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lana_ray.costs.cores import Core, all_cpus, kind_of, physical_cores, suited


def write_system(
    folder: Path,
    siblings: Mapping[str, Sequence[int]],
    speeds: Mapping[int, int] | None = None,
    packages: Mapping[int, int] | None = None,
) -> Path:
    """``/sys/devices/system/cpu`` of a machine: CPUs by what it writes for the CPUs of their core."""
    last = max(cpu for cpus in siblings.values() for cpu in cpus)
    (folder / "online").write_text(f"0-{last}\n")
    for text, cpus in siblings.items():
        for cpu in cpus:
            topology = folder / f"cpu{cpu}" / "topology"
            topology.mkdir(parents=True)
            (topology / "core_cpus_list").write_text(f"{text}\n")
            (topology / "physical_package_id").write_text(f"{(packages or {}).get(cpu, 0)}\n")
            if speeds:
                (folder / f"cpu{cpu}" / "cpufreq").mkdir()
                (folder / f"cpu{cpu}" / "cpufreq" / "cpuinfo_max_freq").write_text(f"{speeds[cpu]}\n")
    return folder


def cpus_of(cores: Sequence[Core]) -> list[tuple[int, ...]]:
    return [core.cpus for core in cores]


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """Two fast cores of two threads each, of which the processor favours one, and four slow ones."""
    siblings = {"0-1": [0, 1], "2-3": [2, 3], "4": [4], "5": [5], "6": [6], "7": [7]}
    speeds = {cpu: 5_000_000 if cpu < 2 else 4_800_000 if cpu < 4 else 3_600_000 for cpu in range(8)}
    return write_system(tmp_path, siblings, speeds)


def test_hyper_threads_are_of_one_core(tmp_path: Path) -> None:
    system = write_system(tmp_path, {"0,4": [0, 4], "1,5": [1, 5]}, packages={1: 1, 5: 1})
    assert [(core.id, core.cpus, core.package) for core in physical_cores([0, 1, 4, 5], system)] == [
        (0, (0, 4), 0),
        (1, (1, 5), 1),
    ]
    assert [(core.id, core.cpus) for core in physical_cores([4, 5], system)] == [(0, (4,)), (1, (5,))]


def test_where_the_system_says_nothing_each_cpu_is_a_core(tmp_path: Path) -> None:
    assert cpus_of(physical_cores([2, 3], tmp_path)) == [(2,), (3,)]
    assert all_cpus(tmp_path)


@pytest.mark.parametrize(
    ("threads", "may"),
    [
        (1, [(2,), (0,)]),  # the fast ones
        (2, [(2,), (0,)]),
        (3, [(7,), (6,), (5,), (4,)]),  # one of each, rather than two of one
        (4, [(7,), (6,), (5,), (4,)]),
        (5, [(7,), (6,), (5,), (4,), (2,), (0,)]),  # of both kinds, as neither has so many
        (8, [(7,), (6,), (5,), (4,), (2, 3), (0, 1)]),
    ],
)
def test_a_measurement_takes_cores_of_one_kind(
    hybrid: Path, threads: int, may: list[tuple[int, ...]]
) -> None:
    assert cpus_of(suited(physical_cores(range(8), hybrid), threads)) == may


def test_more_threads_than_cores_take_both_threads_of_each(tmp_path: Path) -> None:
    cores = physical_cores(range(4), write_system(tmp_path, {"0-1": [0, 1], "2-3": [2, 3]}))
    assert cpus_of(suited(cores, 2)) == [(2,), (0,)]
    assert cpus_of(suited(cores, 3)) == [(2, 3), (0, 1)]
    assert suited(cores, 5) == []


def test_a_kind_is_told_where_there_are_several(hybrid: Path, tmp_path: Path) -> None:
    assert kind_of([1], hybrid) == kind_of([2], hybrid) == "cores of speed 5000000"
    assert kind_of([4, 7], hybrid) == "cores of speed 3600000"
    assert kind_of([3, 4], hybrid) == "cores of speed 5000000 and 3600000"
    (hybrid / "online").write_text("4-7")
    assert kind_of([4], hybrid) is None
