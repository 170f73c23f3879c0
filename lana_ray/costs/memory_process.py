"""Entry point of the process in which memory on a CPU is measured; ``memory`` starts it."""

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
"""Number of runs: runtimes plan their arenas in the first run and may use them only from the second on."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Two programs of ``runtimes.program``, each with an input."""

    first: tuple[nn.Module | bytes, Tensor]
    """A small program, run first so that the runtime's libraries and their workspaces are loaded."""
    network: tuple[nn.Module | bytes, Tensor]
    target: Target


def added_bytes(task: Task) -> int:
    """Returns the bytes that loading and running the network adds to this process's peak resident set."""
    load(*task.first, task.target).run()
    # Resets the peak to what is resident now, see proc_pid_clear_refs(5).
    CLEAR_REFS.write_text("5")
    before = _status_bytes("VmRSS")
    session = load(*task.network, task.target)
    for _ in range(RUNS):
        session.run()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None  # every Linux since 2.6 has both fields
    return int(match[1]) * 1024


def main() -> None:
    """Reads the task that ``memory`` wrote, and prints the added bytes."""
    # The parent process, which waits for this one, wrote the pickle.
    task: Task = torch.load(sys.argv[1], weights_only=False)
    print(added_bytes(task))
