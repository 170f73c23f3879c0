"""How much memory a network takes while it answers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from lana_ray.config import Target
from lana_ray.costs import latency, resident
from lana_ray.costs.meter import Meter
from lana_ray.deploy.runtimes import load, program
from lana_ray.errors import UserError

_PATIENCE_S = 300.0
# Fixed, glibc's thresholds no longer follow what was freed before: large blocks then go back to the system
# when they are freed, and the resident set is what is in use. By default the order in which a runtime frees
# decides what stays, and ONNX Runtime's order differs from process to process.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def unavailable(target: Target) -> str | None:
    """On a GPU only torch's allocator can be asked, on a CPU only Linux."""
    if reason := latency.unavailable(target):
        return reason
    if target.device.startswith("cuda"):
        return None if target.runtime == "torch" else f"{target.runtime} allocates past torch's allocator"
    if not os.access(resident.CLEAR_REFS, os.W_OK):
        return f"{resident.CLEAR_REFS} cannot be written, with which Linux resets a process's peak"
    return None


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Peak memory that loading the network into its runtime and running it adds.

    A small network is run first, so that the runtime and its libraries are there, and the program to load is
    held before and not counted. Then the network is loaded and run three times.

    On a GPU it is the peak of torch's allocator: weights, activations and workspaces that libraries take from
    it, but not the CUDA context.

    On a CPU it is the peak of a process's resident set (VmHWM, reset through /proc/self/clear_refs): weights,
    activations, the runtime's arenas and the copies it makes while it loads, its own objects, and what code
    of the libraries this network is the first to need. The process is a fresh one, since one that has run
    others has free heap, which the next network fills without the resident set growing; that takes seconds.
    With ONNX Runtime and small activations the peak is in loading, at twice the weights.

    Five readings each repeated within about 1 % on a shared virtual machine. Medians in MB, in brackets the
    distance from the smallest to the largest:

    ==========================================  ============  ============
    network (weights)                           ONNX Runtime  PyTorch
    ==========================================  ============  ============
    EfficientNet-Lite0 (18.6), 64 px, batch 1   39.7 (0.26)   28.3 (0.10)
    EfficientNet-Lite0 (18.6), 224 px, batch 8  109.3 (0.15)  113.1 (0.14)
    ResNet-18 (46.8), 224 px, batch 1           95.3 (0.14)   67.6 (0.23)
    MobileNetV2 (14.0), 96 px, batch 4          28.9 (0.30)   30.2 (0.29)
    ==========================================  ============  ============

    A network of three small blocks, 16 px, has 0.52 (0.01) and 1.45 (0.13): that is the runtime's objects.

    Raises:
        UserError: when the runtime refuses the network, or the process dies, out of memory for example.
    """
    small = torch.zeros(1, 3, 8, 8)
    warm_up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    task = resident.Task(
        first=(_portable(program(warm_up, small, target)), small),
        network=(_portable(program(module, example, target)), example),
        target=target,
    )
    added_bytes = _allocated_bytes if target.device.startswith("cuda") else _resident_bytes
    return added_bytes(task) / 1e6


def _allocated_bytes(task: resident.Task) -> int:
    """Asks torch's allocator."""
    load(*task.first, task.target).run()
    before = torch.cuda.memory_allocated(task.target.device)
    torch.cuda.reset_peak_memory_stats(task.target.device)
    session = load(*task.network, task.target)
    for _ in range(resident.RUNS):
        session.run()
    return torch.cuda.max_memory_allocated(task.target.device) - before


def _portable(deployed: nn.Module | bytes) -> nn.Module | bytes:
    """The same program without the tracer of torch.export, which cannot be pickled."""
    if not isinstance(deployed, fx.GraphModule):
        return deployed
    graph = fx.Graph()
    graph.output(graph.graph_copy(deployed.graph, {}))
    return fx.GraphModule(deployed, graph)


def _resident_bytes(task: resident.Task) -> int:
    """Asks a process of its own."""
    name = task.target.name
    environment = {
        **os.environ,
        **_MALLOC,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # as a Ray worker has it, for one
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
                f"target {name!r}: peak_memory_mb did not answer within {_PATIENCE_S:g} s"
            ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"target {name!r}: peak_memory_mb could not be read ({reason})")
    return int(done.stdout.split()[-1])


METER = Meter(
    name="peak_memory_mb", unit="MB (10⁶ bytes)", axis="peak memory (MB)", unavailable=unavailable, read=read
)
