"""A run that is killed goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lana_ray.config import load_config

from .runs import settings, summary_of, times

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = settings(run_dir, ray={"address": "local", "workers": 1})
    config["targets"] = config["targets"][1:]  # one is enough to be disturbed
    config["distill"] = {"steps": 60, "batch_size": 64, "group_size": 1}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lana_ray.cli", "run", str(file)]

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(6000):
            if list(run_dir.glob("candidates/*.safetensors")):
                break
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.1)
        else:
            pytest.fail("no candidate was finished in ten minutes")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    candidates, samples = times(run_dir, "candidates/*"), times(run_dir, "samples/*")
    assert not (run_dir / "summary.json").exists()

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=900)
    after = times(run_dir, "candidates/*")
    assert len(after) == 3
    assert {name: after[name] for name in candidates} == candidates
    assert samples.items() <= times(run_dir, "samples/*").items()
    assert len(summary_of(run_dir)["results"]) == 2
    assert load_config(run_dir / "run.yaml").finetune.epochs == 0.5
