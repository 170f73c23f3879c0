"""How much energy a network takes, by the counters that processors and GPUs keep of themselves."""

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
"""How long a counter is watched: NVML's moves only every 20 to 100 ms, RAPL's every millisecond."""
_BURST_S = 0.01
"""How long is run or rested between two looks at the counter."""
_STILL_S = 2.0
"""A counter that has not moved for so long does not count."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """Energy spent so far, in one zone or several."""

    read: Callable[[], tuple[int, ...]]
    """Microjoules in each zone."""
    wraps_uj: tuple[int, ...]
    """Per zone: the reading at which it starts from zero again."""

    def spent_uj(self, before: tuple[int, ...], after: tuple[int, ...]) -> int:
        """Energy between two readings, over all zones; none may have come round more than once."""
        zones = zip(before, after, self.wraps_uj, strict=True)
        return sum((late - early) % wrap for early, late, wrap in zones)


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """What one batch takes, and what the machine takes anyway."""

    total_mj: float
    """Of the processor or GPU while it runs one batch, idle power included."""
    idle_mw: float
    """Its power while it waits with the network loaded."""
    batch_ms: float
    """How long one batch took."""
    runs: int

    @property
    def above_idle_mj(self) -> float:
        """What a batch adds to what the machine takes anyway."""
        return self.total_mj - self.idle_mw * self.batch_ms / 1e3


def unavailable(target: Target) -> str | None:
    """The network must run, and the device's counter be there and be readable."""
    if reason := latency.unavailable(target):
        return reason
    return nvml_unavailable(target.device) if target.device.startswith("cuda") else rapl_unavailable()


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Energy of one batch above idle, see ``measure_energy``.

    Idle power is taken off because it is spent whether the network runs or not, and because a processor's
    counter covers all its cores: with the idle power of a server in it, the energy of a network on one
    thread would be little more than its latency times a constant.

    Raises:
        UserError: when the runtime refuses the network, or the counter does not tell it from idle.
    """
    counter = nvml_counter(target.device) if target.device.startswith("cuda") else rapl_counter()
    session = prepare(module, example, target)
    try:
        energy = measure_energy(session.run, counter)
        if energy.above_idle_mj <= 0:
            raise UserError(
                f"a batch took {energy.total_mj:.3g} mJ, no more than idling for as long at "
                f"{energy.idle_mw:.3g} mW; let nothing else run beside it"
            )
    except UserError as error:
        raise UserError(f"target {target.name!r}: energy_mj could not be read: {error}") from None
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
    """Energy of ``call``, from its counter's difference over at least ``window_s`` of calls.

    Both ends of the window lie where the counter has just moved, so that its resolution in time does not
    count. Idle power is measured before, for as long and in the same way, after a short warm-up. The counter
    sees whatever else runs on the same processor or GPU: what runs all along is in the idle power, what comes
    and goes is an error.

    Args:
        call: one inference of the batch; must be finished when it returns.
        rest: waits a moment.
        clock: seconds.

    Raises:
        UserError: where the counter stands still.
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
    """Microjoules, seconds and calls between two moves of the counter, ``window_s`` or more apart."""
    start, before, _ = _to_next_move(call, counter, counter.read(), clock)
    runs = _calls(call, window_s, clock)
    end, after, more = _to_next_move(call, counter, counter.read(), clock)
    return counter.spent_uj(before, after), end - start, runs + more


def _to_next_move(
    call: Call, counter: Counter, reading: tuple[int, ...], clock: Callable[[], float]
) -> tuple[float, tuple[int, ...], int]:
    """Calls until the counter differs from ``reading``: when that is, what it says then, and the calls."""
    runs, deadline = 0, clock() + _STILL_S
    while clock() < deadline:
        runs += _calls(call, _BURST_S, clock)
        if (now := counter.read()) != reading:
            return clock(), now, runs
    raise UserError(f"the energy counter has not moved for {_STILL_S:g} s")


def _calls(call: Call, seconds: float, clock: Callable[[], float]) -> int:
    """Calls for so long; how often."""
    runs, deadline = 0, clock() + seconds
    while clock() < deadline:
        call()
        runs += 1
    return runs


def rapl_unavailable(root: Path = POWERCAP) -> str | None:
    """Why the energy of this machine's processors cannot be read; ``root`` is powercap's folder."""
    zones = _zones(root)
    if not zones:
        return (
            f"{root} has no intel-rapl zone: Linux shows it on Intel and AMD processors, virtual machines "
            "and containers mostly hide it"
        )
    try:
        packages = _packages(root)
        for package in packages:
            _number(package / "energy_uj")
            _number(package / "max_energy_range_uj")
    except PermissionError as error:
        return f"{error.filename} may be read by root only; chmod a+r it on the host"
    except (OSError, ValueError) as error:
        return f"{root} cannot be read ({error})"
    return None if packages else f"none of {', '.join(zone.name for zone in zones)} in {root} is a package"


def rapl_counter(root: Path = POWERCAP) -> Counter:
    """The energy of all processor packages through RAPL, which AMD's have under Intel's name.

    Cores, caches and on-chip graphics count; memory does not, since not every package tells its share.
    ``energy_uj`` and ``max_energy_range_uj``: the kernel's Documentation/ABI/testing/sysfs-class-powercap.
    The smallest range in use, 65 kJ, comes round after some minutes at 300 W, so once in a window at most.
    """
    packages = _packages(root)
    return Counter(
        read=lambda: tuple(_number(package / "energy_uj") for package in packages),
        wraps_uj=tuple(_number(package / "max_energy_range_uj") + 1 for package in packages),
    )


def _zones(root: Path) -> list[Path]:
    """Those without a parent: intel-rapl:0, but not its cores, intel-rapl:0:0."""
    return sorted(zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1)


def _packages(root: Path) -> list[Path]:
    """The zones of processors: another, psys, is of the whole board and has the packages in it."""
    return [zone for zone in _zones(root) if (zone / "name").read_text().startswith("package")]


def _number(file: Path) -> int:
    return int(file.read_text())


def nvml_unavailable(device: str) -> str | None:
    """Why the energy of a GPU cannot be read; ``device`` is torch's name of it."""
    try:
        nvml_counter(device).read()
    except UserError as error:
        return str(error)
    return None


def nvml_counter(device: str) -> Counter:
    """The energy of a whole GPU board, which NVML counts since the driver was loaded, from Volta on.

    Raises:
        UserError: where the bindings are not installed, or NVML has no such counter.
    """
    try:
        import pynvml  # of the optional extra
    except ModuleNotFoundError:
        raise UserError("NVML's bindings are not installed (pip install 'lana-ray[nvml]')") from None
    try:
        pynvml.nvmlInit()
        # By its UUID: NVML numbers all GPUs of the machine, torch only those it may see.
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError as error:
        raise UserError(f"NVML does not count the energy of {device} ({error})") from None
    return Counter(
        read=lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * 1000,),  # from millijoules
        wraps_uj=(1 << 64,),
    )


METER = Meter(
    name="energy_mj", unit="mJ per batch", axis="energy (mJ per batch)", unavailable=unavailable, read=read
)
