"""What identifies a node's hardware, from files as systems have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lana_ray.config import Target
from lana_ray.costs.hardware import cpu, processor

RASPBERRY = """\
processor\t: 0
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: {variant}
CPU part\t: {part}

processor\t: 1
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: {variant}
CPU part\t: {part}

Hardware\t: BCM2835
Model\t\t: Raspberry Pi
"""


def machine(root: Path, cpuinfo: str, board: str = "", khz: int = 0) -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(cpuinfo)
    if board:
        (root / "proc/device-tree/model").write_text(f"{board}\0")
    if khz:
        folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(f"{khz}\n")
    return root


def test_boards_of_one_architecture_are_told_apart(tmp_path: Path) -> None:
    pi4, pi5 = "Raspberry Pi 4 Model B Rev 1.4", "Raspberry Pi 5 Model B Rev 1.0"
    a72, a76 = ("0x0", "0xd08"), ("0x4", "0xd0b")
    kinds = [
        (*a72, pi4, 1_500_000),
        (*a72, pi4, 1_800_000),
        (*a72, pi5, 1_500_000),
        (*a76, pi4, 1_500_000),
        ("0x1", "0xd08", pi4, 1_500_000),
    ]
    found = [
        cpu((0, 1), machine(tmp_path / str(i), RASPBERRY.format(variant=variant, part=part), board, khz))
        for i, (variant, part, board, khz) in enumerate(kinds)
    ]
    assert len(set(found)) == len(kinds)
    assert found[0].endswith(
        "implementer 0x41 part 0xd08 variant 0x0, Raspberry Pi 4 Model B Rev 1.4, 1.5 GHz"
    )


def test_a_processor_with_a_name_is_called_by_it(tmp_path: Path) -> None:
    text = "processor : 0\nmodel name : AMD EPYC 7B13\n\nprocessor : 1\nmodel name : AMD EPYC 7B13\n"
    assert cpu((0,), machine(tmp_path / "a", text, khz=3_500_000)) == "AMD EPYC 7B13, 3.5 GHz"
    assert cpu((0, 1), machine(tmp_path / "b", text)) == "AMD EPYC 7B13"
    two = machine(tmp_path / "c", text, khz=5_000_000)
    folder = two / "sys/devices/system/cpu/cpu1/cpufreq"
    folder.mkdir(parents=True)
    (folder / "cpuinfo_max_freq").write_text("4900000")
    assert cpu((0,), two) == cpu((1,), two) == "AMD EPYC 7B13, 5 GHz"  # favoured cores are of the same kind
    assert cpu((), tmp_path / "none")  # a system without these files


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_gpu_is_known_with_its_driver_its_power_limit_and_its_host() -> None:
    found = processor(Target(name="gpu", device="cuda"))
    assert found.startswith(torch.cuda.get_device_name("cuda"))
    assert "driver " in found
    assert " W, " in found
    assert found.endswith(cpu(()) or "")
