"""``energy_mj``: RAPL's counters in a made-up powercap folder, and the arithmetic on a simulated machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.config import Target
from lana_ray.costs import energy
from lana_ray.costs.energy import Counter, measure_energy, rapl_counter, rapl_unavailable

from ..errors import refuses
from ..small_networks import net


def zone(root: Path, name: str, what: str, energy_uj: int = 0, wrap_uj: int = 1 << 36) -> Path:
    """A zone as the kernel shows it."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{what}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap_uj - 1}\n")
    return folder


@dataclass
class Machine:
    """A package that takes ``idle_w``, and ``busy_w`` more while it computes, on a clock of its own.

    ``energy_uj`` is written every ``step_s`` of that clock.
    """

    folder: Path
    wrap_uj: int = 1 << 36
    idle_w: float = 10.0
    busy_w: float = 25.0
    step_s: float = 0.001
    seconds: float = 0.0
    spent_uj: float = 0.0
    written_s: float = 0.0

    def run(self) -> None:
        self._pass(0.004, self.idle_w + self.busy_w)

    def rest(self) -> None:
        self._pass(0.01, self.idle_w)

    def clock(self) -> float:
        return self.seconds

    def _pass(self, seconds: float, watts: float) -> None:
        self.seconds += seconds
        self.spent_uj += watts * seconds * 1e6
        if self.seconds - self.written_s >= self.step_s:
            self.written_s = self.seconds
            (self.folder / "energy_uj").write_text(f"{round(self.spent_uj) % self.wrap_uj}\n")


@pytest.mark.parametrize("step_s", [0.001, 0.1])
@pytest.mark.parametrize("wrap_uj", [1 << 36, 50_000_000])
def test_a_batch_takes_what_the_machine_took_for_it(tmp_path: Path, wrap_uj: int, step_s: float) -> None:
    machine = Machine(zone(tmp_path, "intel-rapl:0", "package-0", 0, wrap_uj), wrap_uj, step_s=step_s)
    found = measure_energy(
        machine.run, rapl_counter(tmp_path), window_s=1.0, rest=machine.rest, clock=machine.clock
    )
    assert found.batch_ms == pytest.approx(4.0)
    assert found.idle_mw == pytest.approx(10_000, rel=0.01)
    assert found.total_mj == pytest.approx(35 * 4.0, rel=0.01)
    assert found.above_idle_mj == pytest.approx(25 * 4.0, rel=0.01)
    assert found.runs >= 250


def test_a_counter_that_stands_still_is_no_measurement(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    machine = Machine(zone(tmp_path / "elsewhere", "intel-rapl:0", "package-0"))
    with refuses("failed", "energy counter", "2 s"):
        measure_energy(machine.run, rapl_counter(tmp_path), rest=machine.rest, clock=machine.clock)


def test_packages_are_added_up_and_their_parts_and_the_board_are_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100, 1000)
    zone(tmp_path, "intel-rapl:1", "package-1", 990, 1000)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 8)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 9)
    (tmp_path / "intel-rapl").mkdir()  # the control type, beside its zones
    assert rapl_unavailable(tmp_path) is None
    counter = rapl_counter(tmp_path)
    assert counter.read() == (100, 990)
    assert counter.wraps_uj == (1000, 1000)
    assert counter.spent_uj((100, 990), (130, 15)) == 30 + 25


@given(
    wrap=st.integers(2, 1 << 64),
    zones=st.lists(
        st.tuples(st.integers(0, 1 << 70), st.floats(0, 1, exclude_max=True)), min_size=1, max_size=4
    ),
)
def test_a_counter_may_come_round_once(wrap: int, zones: list[tuple[int, float]]) -> None:
    starts = [start for start, _ in zones]
    spent = [min(int(share * wrap), wrap - 1) for _, share in zones]
    counter = Counter(read=tuple, wraps_uj=(wrap,) * len(zones))
    before = tuple(start % wrap for start in starts)
    after = tuple((start + more) % wrap for start, more in zip(starts, spent, strict=True))
    assert counter.spent_uj(before, after) == sum(spent)


def test_a_machine_without_rapl_says_so(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        assert f"{root} has no intel-rapl zone" in str(rapl_unavailable(root))


def test_zones_without_a_package_are_not_enough(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "psys")
    assert rapl_unavailable(tmp_path) == f"none of intel-rapl:0 in {tmp_path} is a package"


def test_a_counter_for_root_only_says_who_can_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj"
    read = Path.read_text

    def guarded(path: Path, *args: str) -> str:  # the tests may run as root, whom no mode keeps out
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args)

    monkeypatch.setattr(Path, "read_text", guarded)
    assert rapl_unavailable(tmp_path) == f"{file} is readable only by root; chmod a+r it on the host"


def test_a_zone_that_a_container_masks_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "masked")
    assert "intel-rapl:0/name'" in str(rapl_unavailable(tmp_path))
    (zone(tmp_path, "intel-rapl:1", "package-0") / "energy_uj").write_text("")
    (tmp_path / "intel-rapl:0").unlink()
    assert f"{tmp_path} cannot be read" in str(rapl_unavailable(tmp_path))


def test_a_gpu_needs_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    expected = "NVML's bindings are not installed (pip install 'lana-ray[nvml]')"
    assert energy.nvml_unavailable("cuda:0") == expected


def test_a_gpus_counter_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def energy_of(gpu: str) -> int:
        if gpu != "GPU-1a2b":
            raise NVMLError("Not Supported")
        return 7_000

    pynvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=energy_of,
    )
    uuids = {"cuda:0": "1a2b", "cuda:1": "old"}
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[device])
    )
    assert energy.nvml_counter("cuda:0").read() == (7_000_000,)  # microjoules
    assert energy.nvml_unavailable("cuda:0") is None
    assert energy.nvml_unavailable("cuda:1") == "NVML does not count the energy of cuda:1 (Not Supported)"


def test_no_more_than_idle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(zone(tmp_path, "intel-rapl:0", "package-0"), busy_w=-1.0)
    found = measure_energy(
        machine.run, rapl_counter(tmp_path), window_s=0.5, rest=machine.rest, clock=machine.clock
    )
    monkeypatch.setattr(energy, "measure_energy", lambda *_: found)
    monkeypatch.setattr(energy, "rapl_counter", lambda: rapl_counter(tmp_path))
    target = Target(name="here", input_shape=(3, 16, 16))
    with refuses("failed", "target 'here'", "energy_mj", "36 mJ"):
        energy.read(net(5), torch.zeros(1, 3, 16, 16), target)
