"""Measures the energy of a network with the energy counters of processors and GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs import latency
from lana_ray.costs.meter import Meter
from lana_ray.costs.timing import Call
from lana_ray.deploy.runtimes import prepare
from lana_ray.errors import UserError

POWERCAP = Path("/sys/class/powercap")

_WINDOW_S = 5.0
"""How long a counter is watched: NVML's changes only every 20 to 100 ms, RAPL's every millisecond."""
_BURST_S = 0.01
"""How long calls or rests last between two readings of the counter."""
_STILL_S = 2.0
"""A counter that has not changed for this long is considered broken."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """A counter of the energy spent so far, in one or several zones."""

    read: Callable[[], tuple[int, ...]]
    """Returns the microjoules of each zone."""
    wraps_uj: tuple[int, ...]
    """Per zone, the value in microjoules at which it starts from zero again."""

    def spent_uj(self, before: tuple[int, ...], after: tuple[int, ...]) -> int:
        """Returns the microjoules between two readings, over all zones; each may wrap only once."""
        zones = zip(before, after, self.wraps_uj, strict=True)
        return sum((late - early) % wrap for early, late, wrap in zones)


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """Energy of one batch, and idle power of the device."""

    total_mj: float
    """Energy of the processor or GPU during one batch, including idle power."""
    idle_mw: float
    """Power of the processor or GPU while it is idle with the network loaded."""
    batch_ms: float
    """Duration of one batch."""
    runs: int

    @property
    def above_idle_mj(self) -> float:
        """Energy of one batch without the idle power."""
        return self.total_mj - self.idle_mw * self.batch_ms / 1e3


def unavailable(target: Target) -> str | None:
    """Returns why energy cannot be measured: networks cannot run, or the counter is missing or unreadable."""
    if reason := latency.unavailable(target) or latency.unreachable(target):
        return reason
    return nvml_unavailable(target.device) if target.device.startswith("cuda") else rapl_unavailable()


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Returns the energy of one batch above idle in mJ, see ``measure_energy``.

    Idle power is subtracted because it is spent whether the network runs or not, and because a processor's
    counter covers all its cores: with a server's idle power included, the energy of a network on one thread
    would be little more than its latency times a constant.

    Raises:
        UserError: the runtime refuses the network, or the counter shows no difference from idle.
    """
    counter = nvml_counter(target.device) if target.device.startswith("cuda") else rapl_counter()
    session = prepare(module, example, target)
    try:
        energy = measure_energy(session.run, counter)
        if energy.above_idle_mj <= 0:
            raise UserError(
                "failed",
                f"a batch took {energy.total_mj:.3g} mJ, no more than idling for as long at "
                f"{energy.idle_mw:.3g} mW; run nothing else on this machine meanwhile",
            )
    except UserError as error:
        raise UserError(
            error.code, f"target {target.name!r}: energy_mj could not be measured: {error}"
        ) from None
    return energy.above_idle_mj


def _rest() -> None:
    time.sleep(_BURST_S)


def measure_energy(
    call: Call,
    counter: Counter,
    *,
    window_s: float = _WINDOW_S,
    rest: Call = _rest,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Measures the energy of ``call`` by its counter's difference over at least ``window_s`` of calls.

    The window begins and ends when the counter has just changed, so that its resolution in time does not
    matter. Idle power is measured before, for the same time and in the same way, after a short warm-up. The
    counter includes everything else that runs on the same processor or GPU: a constant load is part of the
    idle power, a varying load is an error of the measurement.

    Args:
        call: one inference of the batch; must be finished when it returns.
        rest: waits a moment.
        clock: returns seconds.

    Raises:
        UserError: the counter does not change.
    """
    _calls(call, window_s / 10, clock)
    idle_uj, idle_s, _ = _watched(rest, counter, window_s, clock)
    spent_uj, spent_s, runs = _watched(call, counter, window_s, clock)
    return Energy(
        total_mj=spent_uj / 1e3 / runs,
        idle_mw=idle_uj / 1e3 / idle_s,
        batch_ms=spent_s * 1e3 / runs,
        runs=runs,
    )


def _watched(
    call: Call, counter: Counter, window_s: float, clock: Callable[[], float]
) -> tuple[int, float, int]:
    """Returns microjoules, seconds and calls between two counter changes at least ``window_s`` apart."""
    start, before, _ = _to_next_move(call, counter, counter.read(), clock)
    runs = _calls(call, window_s, clock)
    end, after, more = _to_next_move(call, counter, counter.read(), clock)
    return counter.spent_uj(before, after), end - start, runs + more


def _to_next_move(
    call: Call, counter: Counter, reading: tuple[int, ...], clock: Callable[[], float]
) -> tuple[float, tuple[int, ...], int]:
    """Calls until the counter differs from ``reading``; returns the time, the new reading and the calls."""
    runs, deadline = 0, clock() + _STILL_S
    while clock() < deadline:
        runs += _calls(call, _BURST_S, clock)
        if (now := counter.read()) != reading:
            return clock(), now, runs
    raise UserError("failed", f"the energy counter has not changed for {_STILL_S:g} s")


def _calls(call: Call, seconds: float, clock: Callable[[], float]) -> int:
    """Calls repeatedly for ``seconds``; returns how often."""
    runs, deadline = 0, clock() + seconds
    while clock() < deadline:
        call()
        runs += 1
    return runs


def rapl_unavailable(root: Path = POWERCAP) -> str | None:
    """Returns why the energy of this machine's processors cannot be read; ``root`` is powercap's folder."""
    zones = _zones(root)
    if not zones:
        return (
            f"{root} has no intel-rapl zone: Linux provides it on Intel and AMD processors, but most virtual "
            "machines and containers hide it"
        )
    try:
        packages = _packages(root)
        for package in packages:
            _number(package / "energy_uj")
            _number(package / "max_energy_range_uj")
    except PermissionError as error:
        return f"{error.filename} is readable only by root; chmod a+r it on the host"
    except (OSError, ValueError) as error:
        return f"{root} cannot be read ({error})"
    return None if packages else f"none of {', '.join(zone.name for zone in zones)} in {root} is a package"


def rapl_counter(root: Path = POWERCAP) -> Counter:
    """Returns the energy counter of all processor packages, through RAPL (AMD's use Intel's name too).

    Cores, caches and on-chip graphics count; memory does not, because not every package reports it.
    The kernel documents ``energy_uj`` and ``max_energy_range_uj`` in
    Documentation/ABI/testing/sysfs-class-powercap. The smallest range in use, 65 kJ, wraps after some minutes
    at 300 W, so at most once in a window.
    """
    packages = _packages(root)
    return Counter(
        read=lambda: tuple(_number(package / "energy_uj") for package in packages),
        wraps_uj=tuple(_number(package / "max_energy_range_uj") + 1 for package in packages),
    )


def _zones(root: Path) -> list[Path]:
    """Returns the zones without a parent: intel-rapl:0, but not its cores, intel-rapl:0:0."""
    return sorted(zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1)


def _packages(root: Path) -> list[Path]:
    """Returns the zones of processors; the zone psys covers the full board, including the processors."""
    return [zone for zone in _zones(root) if (zone / "name").read_text().startswith("package")]


def _number(file: Path) -> int:
    return int(file.read_text())


def nvml_unavailable(device: str) -> str | None:
    """Returns why the energy of a GPU cannot be read; ``device`` is its name in torch."""
    try:
        nvml_counter(device).read()
    except UserError as error:
        return str(error)
    return None


def nvml_counter(device: str) -> Counter:
    """Returns the energy counter of a full GPU board, which NVML has counted since the driver was loaded.

    GPUs have this counter from Volta on.

    Raises:
        UserError: the bindings are not installed, or NVML has no such counter.
    """
    try:
        import pynvml  # from an optional extra
    except ModuleNotFoundError:
        raise UserError(
            "missing_package", "NVML's bindings are not installed (pip install 'lana-ray[nvml]')"
        ) from None
    try:
        pynvml.nvmlInit()
        # NVML numbers all GPUs of the machine, torch only visible ones; so the GPU is found by its UUID.
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError as error:
        raise UserError("unavailable", f"NVML does not count the energy of {device} ({error})") from None
    return Counter(
        read=lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * 1000,),  # from millijoules
        wraps_uj=(1 << 64,),
    )


METER = Meter(
    name="energy_mj", unit="mJ per batch", axis="energy (mJ per batch)", unavailable=unavailable, read=read
)
