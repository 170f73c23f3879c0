"""Things that a run may lose: a cluster, a file system and a tracking server for the experiments."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_S = 300.0


@contextmanager
def cluster(**head: Any) -> Iterator[Any]:
    """Starts a cluster on this machine whose head has these arguments and the only device."""
    import ray
    from ray.cluster_utils import Cluster

    common = {"resources": {"lana_device": 1}, "include_dashboard": False}
    machines = Cluster(initialize_head=True, head_node_args={**common, **head})
    try:
        yield machines
    finally:
        ray.shutdown()
        machines.shutdown()


def descendants(process: int, title: str) -> list[int]:
    """Returns the process ids of a process's descendants whose title begins with ``title``."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    below = {process}
    while new := {int(pid) for pid, parent, *_ in rows if int(parent) in below} - below:
        below |= new
    return [int(row[0]) for row in rows if int(row[0]) in below and "".join(row[2:]).startswith(title)]


@dataclass(frozen=True)
class Disk:
    """A file system in a file, and its mount point."""

    image: Path
    mount: Path

    def attach(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mount)], check=True)

    def detach(self) -> None:
        subprocess.run(["umount", str(self.mount)], check=True)

    def check(self) -> None:
        self.detach()
        subprocess.run(["fsck.ext4", "-y", str(self.image)], capture_output=True)
        self.attach()


@contextmanager
def file_system(folder: Path) -> Iterator[Disk]:
    """Mounts a new file system of two gigabytes."""
    disk = Disk(folder / "disk.img", folder / "disk")
    disk.mount.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(2 * 2**30)
    subprocess.run(["mkfs.ext4", "-q", str(disk.image)], check=True)
    disk.attach()
    try:
        yield disk
    finally:
        disk.detach()


class Server:
    """``mlflow server`` over SQLite on loopback."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        stores = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        stores += ["--artifacts-destination", str(self._folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), *stores]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"mlflow server does not answer; see {self._folder}/server.log")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Starts a tracking server that stores everything in a folder."""
    started = Server(folder)
    started.start()
    try:
        yield started
    finally:
        started.stop()
