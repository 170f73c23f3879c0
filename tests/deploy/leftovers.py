"""What a process keeps of the modules that a runtime loaded and that were dropped.

A process of its own, as a test's keeps more: what is logged, at least. Prints, as JSON, the bytes that stay
per module and by how much the threads and the open files grew.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes import prepare


def _use(target: Target, count: int) -> None:
    for i in range(count):
        width = 8 + i % 40
        module = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        prepare(module, torch.randn(4, 3, 16, 16), target).run()


def _held() -> tuple[int, int, int]:
    """Resident bytes, threads and open files of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/task")),
        len(os.listdir("/proc/self/fd")),
    )


if __name__ == "__main__":
    _target, _count = Target.model_validate_json(sys.argv[1]), int(sys.argv[2])
    _use(_target, _count)  # what is kept once, however many follow
    _before = _held()
    _use(_target, _count)
    _bytes, _threads, _files = (after - before for after, before in zip(_held(), _before, strict=True))
    print(json.dumps({"bytes": _bytes / _count, "threads": _threads, "files": _files}))
