"""The entries of jobs/ are the commands of their names."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lana_ray import cli

JOBS = Path(__file__).parents[1] / "jobs"
ENTRIES = {"accelerate": "run", "sample": "sample", "search": "search"}


@pytest.mark.parametrize(("entry", "command"), ENTRIES.items())
def test_an_entry_runs_its_command(entry: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda: called.append(sys.argv))
    monkeypatch.setattr(sys, "argv", [f"jobs/{entry}.py", "run.yaml", "--set", "run.dir=x"])
    runpy.run_path(str(JOBS / f"{entry}.py"), run_name="__main__")
    assert called == [[f"jobs/{entry}.py", command, "run.yaml", "--set", "run.dir=x"]]


def test_plain_python_runs_an_entry_wherever_it_is_started(tmp_path: Path) -> None:
    """With the package installed, as on a cluster: the working directory is a copy that Ray made."""
    asked = [sys.executable, str(JOBS / "sample.py"), "missing.yaml"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lana-ray: missing.yaml: no such configuration file\n"
