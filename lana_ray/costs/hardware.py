"""Which hardware a target's networks run on here, exactly enough to tell two kinds of nodes apart."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from lana_ray.config import Target
from lana_ray.costs.cores import kind_of

_ROOT = Path("/")
_ARM = {"CPU implementer": "implementer", "CPU part": "part", "CPU variant": "variant"}
_BOARDS = ("proc/device-tree/model", "sys/class/dmi/id/product_name")
_FREQUENCIES = "sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"
_GPU_QUERY = ("driver_version", "power.limit")
_GPU_S = 10.0


def own_cpus() -> tuple[int, ...]:
    """The CPUs that this process is kept on; none where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def processor(target: Target) -> str:
    """The CPU that a target's networks run on here, or the GPU with its driver and power limit, and the CPU.

    Of a CPU with cores of several kinds, it says which of them the process is kept on.
    """
    host = (
        [cpu(own_cpus()), kind_of(own_cpus())] if target.device == "cpu" else [gpu(target), cpu(own_cpus())]
    )
    return ", ".join(filter(None, host))


def cpu(cpus: tuple[int, ...], root: Path = _ROOT) -> str:
    """The model of some CPUs and the highest frequency of any CPU here: cores of one kind differ a little.

    Arm's have no model's name: implementer, part and variant of the cores and the board stand for it.
    """
    entries = _cpuinfo(root)
    own = [entry for entry in entries if int(entry.get("processor", -1)) in cpus] or entries
    names = dict.fromkeys(entry["model name"] for entry in own if "model name" in entry)
    parts = list(names) or _arm(own, root) or [platform.processor() or platform.machine()]
    fastest = max((_number(file) for file in root.glob(_FREQUENCIES)), default=0)
    return ", ".join([*parts, *([f"{fastest / 1e6:g} GHz"] if fastest else [])])


def gpu(target: Target) -> str:
    """A GPU's model, its driver and its power limit."""
    properties = torch.cuda.get_device_properties(target.device)
    return ", ".join(filter(None, (properties.name, _nvidia(f"GPU-{properties.uuid}"))))


def _nvidia(uuid: str) -> str:
    """Driver and power limit of a GPU; nothing where the driver's own tool is missing."""
    query = ["nvidia-smi", "-i", uuid, f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=_GPU_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    driver, limit = (value.strip() for value in found.strip().partition(",")[::2])
    return f"driver {driver}, {limit}"


def _arm(entries: list[dict[str, str]], root: Path) -> list[str]:
    cores = dict.fromkeys(
        " ".join(f"{word} {entry[key]}" for key, word in _ARM.items() if key in entry) for entry in entries
    )
    known = [f"{platform.machine()} {core}" for core in cores if core]
    return [*known, *filter(None, [_board(root)])] if known else []


def _board(root: Path) -> str:
    for file in _BOARDS:
        try:
            return (root / file).read_text().strip("\0 \n")
        except OSError:
            continue
    return ""


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """What the system says of every CPU."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return []
    blocks = (block.splitlines() for block in text.split("\n\n") if block.strip())
    pairs = ([line.partition(":") for line in block] for block in blocks)
    return [{key.strip(): value.strip() for key, _, value in block} for block in pairs]


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
