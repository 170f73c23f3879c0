"""Runs as processes of their own: killed and resumed, beyond reach, and among traps.

What others can write, a run directory and a registry, runs no code of theirs; secrets end nowhere; nothing
listens beyond loopback.
"""

from __future__ import annotations

import http.server
import io
import ipaddress
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.run_dir.storage import Storage

from .runs import settings, summary_of, times

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="sockets are read from /proc"),
]

CANARY = "c4nary"
_LONGEST_S = 900.0
MARK = "LANA_TRAPS_MARK"

HOOK = """
import os, sys

FOLDER, MARK = os.environ["LANA_TRAPS"], os.environ["LANA_TRAPS_MARK"]

def look(event, arguments):
    if event == "exec":
        file = getattr(arguments[0], "co_filename", "")
    elif event == "compile":
        file = arguments[1]
    elif event == "import":
        file = arguments[1]
    else:
        return
    if isinstance(file, bytes):
        file = file.decode(errors="replace")
    if isinstance(file, str) and file.startswith(FOLDER):
        with open(MARK, "a") as mark:
            mark.write(f"{event} {arguments!r}\\n")

sys.addaudithook(look)
"""
"""Run by every Python process at its start, Ray's workers included."""


class _Planted:
    """Notes that it was unpickled."""

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (f"{self._mark}-unpickled",)


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


@dataclass(frozen=True)
class Machine:
    """Where the runs of this module take place."""

    run_dir: Path
    mark: Path
    ray: Path
    file: Path
    environment: dict[str, str]
    addresses: set[str] = field(default_factory=set)
    """That processes of the runs have listened on."""

    def start(self, *command: str, log: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "lana_ray.cli", *command],
            env={**os.environ, **self.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *command: str, status: int | None = 0) -> str:
        """What a command of lana-ray says that ends with this status, any if None."""
        with tempfile.TemporaryFile() as log:
            process, end = self.start(*command, log=log), time.monotonic() + _LONGEST_S
            while process.poll() is None:
                self.addresses.update(listening(group_of(process.pid)))
                assert time.monotonic() < end, f"{command} takes too long"
                time.sleep(0.3)
            log.seek(0)
            said = log.read().decode()
        assert status in (None, process.returncode), said
        return said


def _images(path: Path) -> None:
    """Ninety-six images of two classes, bright and dark."""
    rows = []
    for number in range(96):
        buffer = io.BytesIO()
        shade = 40 + number if number % 2 else 240 - number
        Image.new("RGB", (16, 16), (shade, number, 255 - shade)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue()}, "label": number % 2})
    pq.write_table(pa.Table.from_pylist(rows), path)


class _Bucket(http.server.SimpleHTTPRequestHandler):
    """Serves ranges of files to whoever knows the password."""

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        if "Authorization" not in self.headers:
            self.send_error(401)
            return
        start, end = 0, len(content)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1) if last else end
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:end])

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has ``train.parquet``."""
    folder = tmp_path_factory.mktemp("bucket")
    _images(folder / "train.parquet")

    def handler(*arguments: Any) -> _Bucket:
        return _Bucket(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, bucket: str) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("traps")
    hooks, run_dir, mark = folder / "hooks", folder / "run", folder / "mark"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOOK)
    parquet = f"http://me:{CANARY}@{bucket}/train.parquet?X-Amz-Signature={CANARY}&sig={CANARY}"
    config = settings(run_dir, targets=[settings(run_dir)["targets"][1]])
    config |= {"ray": {"address": "local", "workers": 2}, "data": {"parquet": parquet, "image_size": 16}}
    config |= {
        "score": {"images": 16, "batch_size": 16},
        "distill": {"steps": 60, "batch_size": 16, "group_size": 1},
    }
    config |= {
        "finetune": {"epochs": 1, "batch_size": 16, "micro_batch_size": 8},
        "budgets": {"latency_ms": ["1000%"]},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    with tempfile.TemporaryDirectory(prefix="lana") as ray:  # short, for sockets
        environment = {
            "PYTHONPATH": os.pathsep.join([str(hooks), os.environ.get("PYTHONPATH", os.getcwd())]),
            "LANA_TRAPS": str(run_dir),
            MARK: str(mark),
            "RAY_TMPDIR": ray,
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        yield Machine(run_dir, mark, Path(ray), file, environment)


@pytest.fixture(scope="module")
def killed(machine: Machine) -> tuple[dict[str, int], set[Sample]]:
    """When the candidates were written and which samples there are of a run, which finds its data by a URL
    with secrets and is killed as soon as it has a candidate."""
    process = machine.start("run", str(machine.file), log=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _LONGEST_S
        while not list(machine.run_dir.glob("candidates/*.safetensors")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < end, "no candidate was finished"
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (machine.run_dir / "summary.json").exists()
    return times(machine.run_dir, "candidates/*"), samples_of(machine)


def samples_of(machine: Machine) -> set[Sample]:
    return set(SampleStore(Storage(str(machine.run_dir))).read())


@pytest.fixture(scope="module")
def said(machine: Machine, killed: object) -> str:
    """What the same command says that goes on from there."""
    return machine.run("run", str(machine.file))


def test_a_killed_run_goes_on_where_it_was(
    machine: Machine, killed: tuple[dict[str, int], set[Sample]], said: str
) -> None:
    (candidates, samples), after = killed, times(machine.run_dir, "candidates/*")
    assert len(after) == 3
    assert {name: after[name] for name in candidates} == candidates
    assert samples <= samples_of(machine)
    assert summary_of(machine.run_dir)["results"]


def test_secrets_of_a_url_are_neither_said_nor_kept(machine: Machine, said: str) -> None:
    assert CANARY not in said
    kept = [path for path in (*machine.run_dir.rglob("*"), *machine.ray.rglob("*")) if path.is_file()]
    assert machine.run_dir / "mlflow.db" in kept
    assert any(path.suffix == ".log" for path in kept)
    assert [path for path in kept if CANARY.encode() in path.read_bytes()] == []


def _plant(machine: Machine) -> int:
    """Puts traps into every folder of the run and of its registry; returns how many."""
    trap = pickle.dumps(_Planted(str(machine.mark)))
    code = f"open({str(machine.mark)!r}, 'a').write('imported\\n')\n"
    names = ("tuner.pkl", "trainer.pkl", "checkpoint.pt", "model.pth", "searcher-state.pkl", "data.pkl")
    folders = [machine.run_dir, *(path for path in machine.run_dir.rglob("*") if path.is_dir())]
    for folder in folders:
        for name in names:
            (folder / name).write_bytes(trap)
        for name in ("planted.py", "__init__.py", "sitecustomize.py", "conftest.py"):
            (folder / name).write_text(code)
        (folder / "pickle_module_info.txt").write_text("planted")
        state = {"trial_data": [], "runner_data": {"_type": "CLOUDPICKLE_FALLBACK", "value": trap.hex()}}
        if folder.is_relative_to(machine.run_dir / "ray"):  # elsewhere such a file is one of ours, damaged
            (folder / "experiment_state-2026-01-01_00-00-00.json").write_text(json.dumps(state))
        (folder / "code").mkdir(exist_ok=True)
        (folder / "code" / "planted.py").write_text(code)
    for described in machine.run_dir.rglob("MLmodel"):
        text = described.read_text()
        described.write_text(text.replace("pytorch:", "pytorch:\n    code: code", 1))
    return len(folders) * len(names)


def test_nothing_of_a_run_directory_or_registry_is_executed(machine: Machine, said: str) -> None:
    """Resuming and verifying: what is missing is made again beside the traps."""
    assert _plant(machine) > 50
    for lost in ("candidates", "students", "evaluations"):
        for file in (machine.run_dir / lost).glob("*.safetensors"):
            file.unlink()
    (machine.run_dir / "scores.parquet").unlink()
    machine.run("run", str(machine.file))
    uri = summary_of(machine.run_dir)["results"][0]["model_uri"]
    machine.run("verify", uri, "--registry", str(machine.run_dir), status=None)  # as fast as it may be here
    assert not machine.mark.exists(), machine.mark.read_text()
    assert not Path(f"{machine.mark}-unpickled").exists()


def test_all_processes_listen_on_loopback_alone(machine: Machine, said: str) -> None:
    """Ray's own, samplers, workers that train one network together, and what verifies."""
    assert "finetune: up to 2 workers" in said
    assert [address for address in machine.addresses if not is_loopback(address)] == []
    assert machine.addresses


def test_the_traps_spring_and_are_noticed(machine: Machine, said: str) -> None:
    """Otherwise the test above would show nothing."""
    folder = machine.run_dir / "sprung"
    folder.mkdir()
    mark = machine.mark.with_name("other")
    (folder / "planted.py").write_text("pass\n")
    (folder / "tuner.pkl").write_bytes(pickle.dumps(_Planted(str(mark))))
    script = f"""
import pickle, sys
sys.path.insert(0, {str(folder)!r})
import planted
pickle.load(open({str(folder / "tuner.pkl")!r}, "rb"))
"""
    environment = {**os.environ, **machine.environment, MARK: str(mark)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert "exec" in mark.read_text()
    assert Path(f"{mark}-unpickled").is_dir()
