"""Describes the hardware of this node exactly enough to distinguish kinds of nodes."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from lana_ray.config import Target
from lana_ray.costs.cores import kind_of
from lana_ray.deploy.runtimes import RUNTIMES

_ROOT = Path("/")
_ARM = {"CPU implementer": "implementer", "CPU part": "part", "CPU variant": "variant"}
_BOARDS = ("proc/device-tree/model", "sys/class/dmi/id/product_name")
_FREQUENCIES = "sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"
_GPU_QUERY = ("driver_version", "power.limit")
_GPU_S = 10.0


def own_cpus() -> tuple[int, ...]:
    """Returns the CPUs to which this process is pinned; none if the system does not report them."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def processor(target: Target) -> str:
    """Returns the CPU on which a target's networks run here, preceded by the GPU of a GPU target.

    If they run on another device, returns the line that identifies it instead; raises DeviceError if it does
    not answer.

    A GPU's description includes driver and power limit. If the CPU has several kinds of cores, its
    description includes the kind to which the process is pinned.
    """
    identity = RUNTIMES[target.runtime].identity
    if identity is not None:
        return identity(target)
    host = (
        [cpu(own_cpus()), kind_of(own_cpus())] if target.device == "cpu" else [gpu(target), cpu(own_cpus())]
    )
    return ", ".join(filter(None, host))


def cpu(cpus: tuple[int, ...], root: Path = _ROOT) -> str:
    """Returns the model of ``cpus`` and the highest frequency of all CPUs; cores of one kind differ a little.

    Arm's CPUs have no model name; implementer, part and variant of the cores and the board replace it.
    """
    entries = _cpuinfo(root)
    own = [entry for entry in entries if int(entry.get("processor", -1)) in cpus] or entries
    names = dict.fromkeys(entry["model name"] for entry in own if "model name" in entry)
    parts = list(names) or _arm(own, root) or [platform.processor() or platform.machine()]
    fastest = max((_number(file) for file in root.glob(_FREQUENCIES)), default=0)
    return ", ".join([*parts, *([f"{fastest / 1e6:g} GHz"] if fastest else [])])


def gpu(target: Target) -> str:
    """Returns a GPU's model, driver and power limit."""
    properties = torch.cuda.get_device_properties(target.device)
    return ", ".join(filter(None, (properties.name, _nvidia(f"GPU-{properties.uuid}"))))


def _nvidia(uuid: str) -> str:
    """Returns driver and power limit of a GPU; an empty text if ``nvidia-smi`` is missing."""
    query = ["nvidia-smi", "-i", uuid, f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=_GPU_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    driver, limit = (value.strip() for value in output.strip().partition(",")[::2])
    return f"driver {driver}, {limit}"


def _arm(entries: list[dict[str, str]], root: Path) -> list[str]:
    cores = dict.fromkeys(
        " ".join(f"{word} {entry[key]}" for key, word in _ARM.items() if key in entry) for entry in entries
    )
    described = [f"{platform.machine()} {core}" for core in cores if core]
    return [*described, *filter(None, [_board(root)])] if described else []


def _board(root: Path) -> str:
    for file in _BOARDS:
        try:
            return (root / file).read_text().strip("\0 \n")
        except OSError:
            continue
    return ""


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """Returns the entries of /proc/cpuinfo, one per CPU."""
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
