"""What the process does that memory on a CPU is measured in; ``memory`` starts it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes import load

CLEAR_REFS = Path("/proc/self/clear_refs")
RUNS = 3
"""Runtimes plan their arenas in the first run and may use them only from the second on."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Programs as ``runtimes.program`` makes them, each with an input."""

    first: tuple[nn.Module | bytes, Tensor]
    """A small one, run before so that the runtime's libraries and their workspaces are there."""
    network: tuple[nn.Module | bytes, Tensor]
    target: Target


def added_bytes(task: Task) -> int:
    """What loading and running the network adds to the peak resident set of this process."""
    load(*task.first, task.target).run()
    CLEAR_REFS.write_text("5")  # the peak starts again from what is resident now, see proc_pid_clear_refs(5)
    before = _status_bytes("VmRSS")
    session = load(*task.network, task.target)
    for _ in range(RUNS):
        session.run()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None  # every Linux since 2.6 has both
    return int(found[1]) * 1024


def main() -> None:
    """Reads a task that ``memory`` wrote, and prints bytes."""
    # Pickled by our own parent process, which waits for us.
    task: Task = torch.load(sys.argv[1], weights_only=False)
    print(added_bytes(task))
