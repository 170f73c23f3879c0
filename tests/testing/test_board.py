"""The example of a device without lana_ray, over ssh to this machine if it has sshd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lana_ray.config import Target, load_config
from lana_ray.costs.sampler import Sampler
from lana_ray.costs.work import network_work
from lana_ray.networks.layers import find_layers
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces import LayerwiseSpace

from ..small_networks import net

EXAMPLES = Path(__file__).parents[2] / "jobs" / "examples"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
START_S = 20.0


@contextmanager
def ssh(folder: Path) -> Iterator[str]:
    """What logs in to a temporary sshd on the loopback, with keys of its own."""
    key, port = folder / "key", _free_port()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shutil.copy(key.with_suffix(".pub"), folder / "authorized")
    settings = {
        "HostKey": key,
        "AuthorizedKeysFile": folder / "authorized",
        "ListenAddress": f"127.0.0.1:{port}",
        "StrictModes": "no",
        "PidFile": "none",
        "PasswordAuthentication": "no",
    }
    (folder / "sshd").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={folder}/known", "LogLevel=ERROR"]
    login = f"ssh -F none -i {key} -p {port} {' '.join(f'-o {option}' for option in options)} 127.0.0.1"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # root's sshd needs it, and its service makes it
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd")], stderr=log)
    try:
        end = time.monotonic() + START_S
        while subprocess.run([*login.split(), "true"], capture_output=True).returncode:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"sshd did not start: {(folder / 'log').read_text()}")
            time.sleep(0.1)
        yield login
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def board(login: str, folder: Path) -> Target:
    """The example's target, with another way to log in, to where ``bench.py`` is."""
    text = (EXAMPLES / "board.yaml").read_text()
    file = folder / "board.yaml"
    file.write_text(
        text.replace("ssh localhost", login).replace(
            "python3 bench.py", f"{sys.executable} {EXAMPLES}/bench.py"
        )
    )
    (target,) = load_config(file).targets
    return target.model_copy(update={"input_shape": (3, 16, 16)})


def measure(target: Target, folder: Path) -> None:
    network = net(5).eval()
    space = LayerwiseSpace(network, find_layers(network, torch.randn(2, 3, 16, 16)), ["identity"])
    sampler = Sampler(space, target, Storage(str(folder)))
    *_, teacher, sample = sampler.sample([network_work(space, (1, 0, 1))], [])
    assert teacher.key == "teacher"
    assert sample.median_ms > 0
    assert sample.error is None
    assert sample.repeats >= 10
    assert socket.gethostname() in sample.processor
    assert "onnxruntime" in sample.processor


@pytest.mark.usefixtures("own_process")
def test_the_example_measures_over_ssh(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    if SSHD is None:
        measure(board("env", tmp_path), tmp_path)
        return
    with ssh(tmp_path) as login:
        measure(board(login, tmp_path), tmp_path)
