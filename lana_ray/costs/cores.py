"""Reads this machine's physical cores: their CPUs, processors and kinds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_SYSTEM = Path("/sys/devices/system/cpu")
_SAME_KIND = 0.9
"""Share of the fastest core's speed from which a core is of its kind; favoured cores are a little faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """A physical core."""

    id: int
    """The first of its CPUs."""
    cpus: tuple[int, ...]
    """Its CPUs that may be used."""
    package: int
    speed: int
    """Its capacity, or its highest frequency in kHz; comparable within a machine; 0 if unknown."""


def physical_cores(allowed: Iterable[int], system: Path = _SYSTEM) -> list[Core]:
    """Returns the physical cores of the CPUs; each CPU counts as a core if the system reports no cores."""
    cpus: dict[int, list[int]] = {}
    for cpu in sorted(allowed):
        cpus.setdefault(min(_siblings(cpu, system)), []).append(cpu)
    return [
        Core(
            id=first,
            cpus=tuple(own),
            package=_number(system / f"cpu{own[0]}/topology/physical_package_id"),
            speed=_number(system / f"cpu{own[0]}/cpu_capacity")
            or _number(system / f"cpu{own[0]}/cpufreq/cpuinfo_max_freq"),
        )
        for first, own in cpus.items()
    ]


def suited(cores: Sequence[Core], threads: int) -> list[Core]:
    """Returns the cores and CPUs that a measurement with ``threads`` threads may lease, the last first.

    They are of the fastest kind that has a core, or else a CPU, for each thread, so that all samplers of a
    machine measure on the same kind. The list is empty if there are fewer CPUs than threads.
    """
    kinds, most = _kinds(cores), max(len(core.cpus) for core in cores)
    for kind, each in [*((kind, each) for each in (1, most) for kind in kinds), (cores, 1), (cores, most)]:
        own = [replace(core, cpus=core.cpus[:each]) for core in kind]
        if sum(len(core.cpus) for core in own) >= threads:
            return sorted(own, key=lambda core: -core.id)
    return []


def kind_of(cpus: Iterable[int], system: Path = _SYSTEM) -> str | None:
    """Describes the kinds of cores to which CPUs belong; None if the machine has only one kind."""
    kinds = _kinds(physical_cores(all_cpus(system), system))
    if len(kinds) < 2:
        return None
    own = set(cpus)
    speeds = [str(kind[0].speed) for kind in kinds if any(own.intersection(core.cpus) for core in kind)]
    return f"cores of speed {' and '.join(speeds)}"


def _kinds(cores: Iterable[Core]) -> list[list[Core]]:
    """Groups cores by their speed, the fastest first."""
    kinds: list[list[Core]] = []
    for core in sorted(cores, key=lambda core: -core.speed):
        if not kinds or core.speed < _SAME_KIND * kinds[-1][0].speed:
            kinds.append([])
        kinds[-1].append(core)
    return kinds


def by_package(cores: Sequence[Core]) -> list[list[Core]]:
    """Groups cores by their processor, in the given order."""
    packages = dict.fromkeys(core.package for core in cores)
    return [[core for core in cores if core.package == package] for package in packages]


def all_cpus(system: Path = _SYSTEM) -> list[int]:
    """Returns the online CPUs of this machine, including those that this process may not use."""
    return _listed(system / "online") or list(range(os.cpu_count() or 1))


def _siblings(cpu: int, system: Path) -> list[int]:
    """Returns the CPUs of a CPU's core, including the CPU itself."""
    topology = system / f"cpu{cpu}" / "topology"
    return _listed(topology / "core_cpus_list") or _listed(topology / "thread_siblings_list") or [cpu]


def _listed(file: Path) -> list[int]:
    """Returns the numbers that a file lists, such as ``0-3,8``; none if there is no such file."""
    try:
        ends = [part.split("-") for part in file.read_text().strip().split(",")]
        return [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]
    except (OSError, ValueError):
        return []


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
