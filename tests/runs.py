"""The configuration of a whole run of seconds, and what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

NETWORKS = Path(__file__).parent / "small_networks.py"


def settings(run_dir: Path, **changes: Any) -> dict[str, Any]:
    """A run of seconds; its budgets are wide, for a busy machine breaks tight ones of a small network."""
    measure = {"architectures": 8, "time_limit_s": 0.05, "soak_s": 0}
    return {
        "run": {"dir": str(run_dir)},
        "ray": {"workers": 2},
        "teacher": {"factory": f"{NETWORKS}:net"},
        "data": {"source": "digits", "image_size": 16, "augment": "none"},
        "pool": {"ops": ["identity", "mbconv_e1_k3"], "max_cost": None},
        "targets": [
            {"name": "ort", "runtime": "onnxruntime", "measure": measure},
            {"name": "eager", "runtime": "torch", "batch_size": 4, "measure": measure},
        ],
        "budgets": {"latency_ms": ["1000%", "500ms"]},
        "distill": {"steps": 8, "batch_size": 32, "group_size": 1},
        "score": {"images": 64, "batch_size": 32},
        "select": {"count": 2, "rounds": 1},
        "finetune": {"epochs": 0.5, "batch_size": 64},
    } | changes


def summary_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob(pattern)}


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
"""Environment of a process that makes nodes of a cluster, all of which need the same."""


def printed(script: str, folder: Path, **environment: str) -> list[str]:
    """What a process with a Ray of its own prints, whose workers find the tests' modules too."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
