"""A local run can be reached from nowhere: all its processes listen on loopback alone."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from . import runs

LISTENING = "0A"


def listening(processes: set[int]) -> Iterator[str]:
    """The addresses on which these processes accept TCP connections."""
    owned = set()
    for process in processes:
        try:
            owned |= {os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()}
        except OSError:  # it ended meanwhile
            continue
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = row.split()
            if state == LISTENING and f"socket:[{rest[5]}]" in owned:
                words = bytes.fromhex(local.partition(":")[0])
                in_order = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                yield str(ipaddress.ip_address(in_order))


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def group_of(leader: int) -> set[int]:
    """Every process of the session that ``leader`` began, and all that they started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
    found = {leader}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="sockets are read from /proc")
def test_a_local_run_listens_on_loopback_alone(tmp_path: Path) -> None:
    """Ray's own processes, samplers, and workers that train one network together."""
    settings = runs.settings(tmp_path / "run", targets=[runs.settings(tmp_path)["targets"][1]])
    settings["ray"] = {"address": "local", "workers": 2}
    settings["teacher"] = {"timm": "test_efficientnet", "adapt": {"epochs": 1, "batch_size": 64}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "lana_ray.cli", "sample", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT) as run:
        seen: dict[str, int] = {}
        while True:
            try:
                run.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                for address in listening(group_of(run.pid)):
                    seen[address] = seen.get(address, 0) + 1
        assert run.stdout is not None
        output = run.stdout.read()
    assert run.returncode == 0, output
    assert "teacher: up to 2 workers" in output
    assert [address for address in seen if not is_loopback(address)] == []
    assert len(seen) >= 1
