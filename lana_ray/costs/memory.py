"""Measures the peak memory of a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs import latency
from lana_ray.costs import memory_process as resident
from lana_ray.costs.meter import Meter
from lana_ray.deploy.program import portable
from lana_ray.deploy.runtimes import load, program
from lana_ray.errors import UserError

_PATIENCE_S = 300.0
# Fixed thresholds make glibc return large blocks to the system when they are freed, so that the resident set
# is the memory in use. By default, glibc adapts them to the order in which a runtime frees memory, and ONNX
# Runtime's order differs from process to process.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def unavailable(target: Target) -> str | None:
    """Returns why memory cannot be measured: GPUs need torch's allocator, CPUs need Linux."""
    if reason := latency.unavailable(target) or latency.unreachable(target):
        return reason
    if target.device.startswith("cuda"):
        return None if target.runtime == "torch" else f"{target.runtime} allocates past torch's allocator"
    if not os.access(resident.CLEAR_REFS, os.W_OK):
        return f"{resident.CLEAR_REFS} is not writable, which Linux needs to reset a process's peak"
    return None


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Returns the peak memory in MB that loading the network into its runtime and running it adds.

    A small network runs first, so that the runtime and its libraries are loaded; the program itself is in
    memory before and does not count. Then the network is loaded and run three times.

    On a GPU, this is the peak of torch's allocator: weights, activations and workspaces that libraries take
    from it, but not the CUDA context.

    On a CPU, it is the peak of a process's resident set (VmHWM, reset through /proc/self/clear_refs):
    weights, activations, the runtime's arenas, objects and copies while loading, and library code that this
    network is the first to use. Each reading starts a new process, which takes seconds: a process that has
    run other networks has free heap, which the next network fills without growing the resident set. With
    ONNX Runtime and small activations, the peak occurs while loading, at twice the weights.

    Readings repeat within about 1 %: see "Repeated readings of peak memory" in ``jobs/RESULTS.md``.

    Raises:
        UserError: the runtime refuses the network, or the process dies, for example out of memory.
    """
    small = torch.zeros(1, 3, 8, 8)
    warm_up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    task = resident.Task(
        first=(portable(program(warm_up, small, target)), small),
        network=(portable(program(module, example, target)), example),
        target=target,
    )
    added_bytes = _allocated_bytes if target.device.startswith("cuda") else _resident_bytes
    return added_bytes(task) / 1e6


def _allocated_bytes(task: resident.Task) -> int:
    """Returns the bytes that the network adds, by torch's allocator."""
    load(*task.first, task.target).run()
    before = torch.cuda.memory_allocated(task.target.device)
    torch.cuda.reset_peak_memory_stats(task.target.device)
    session = load(*task.network, task.target)
    for _ in range(resident.RUNS):
        session.run()
    return torch.cuda.max_memory_allocated(task.target.device) - before


def _resident_bytes(task: resident.Task) -> int:
    """Returns the bytes that the network adds to the resident set of a new process."""
    name = task.target.name
    environment = {
        **os.environ,
        **_MALLOC,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # includes what Ray adds for its workers
        "OMP_NUM_THREADS": str(task.target.threads),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.pt"
        torch.save(task, file)
        code = f"from {resident.__name__} import main; main()"
        command = [sys.executable, "-c", code, str(file)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                "failed", f"target {name!r}: peak_memory_mb was not measured within {_PATIENCE_S:g} s"
            ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError("failed", f"target {name!r}: peak_memory_mb could not be measured ({reason})")
    return int(done.stdout.split()[-1])


METER = Meter(
    name="peak_memory_mb", unit="MB (10⁶ bytes)", axis="peak memory (MB)", unavailable=unavailable, read=read
)
