"""A tracking server of one's own, over SQLite and PostgreSQL, that also goes away for a while."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lana_ray import registry
from lana_ray.registry import DataSet, Part, Pipeline, Version
from lana_ray.registry._folder import save
from lana_ray.registry._session import session

from ..errors import refuses
from .students import SHAPE, model, network, promote, student

CANARY = "c4nary"
_START_S = 120.0
PIPELINE = Pipeline(
    name="quickstart",
    key="k1",
    tags={},
    parameters={"distill.steps": "8"},
    data=DataSet(name="digits", digest="d1", sizes={"train": 8}),
)


class Server:
    """``mlflow server`` on loopback."""

    def __init__(self, backend: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://me:{CANARY}@127.0.0.1:{self._port}"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--backend-store-uri", backend, "--artifacts-destination", str(folder), "--workers", "1"),
        ]

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self.folder / "server.log").read_text()[-2000:])

    def signal(self, number: signal.Signals) -> None:
        """To the server and its workers."""
        os.killpg(self._process.pid, number)

    def stop(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()


@contextmanager
def _postgres() -> Iterator[str]:
    """URI of a database in a PostgreSQL of its own, on a Unix socket alone; not as root, which it refuses."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("needs PostgreSQL (Debian's postgresql)")
    pytest.importorskip("psycopg2")
    user = pwd.getpwuid(os.geteuid()).pw_name
    switch: list[str] = []
    if os.geteuid() == 0:
        user, switch = "postgres", ["runuser", "-u", "postgres", "--"]
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short, as paths of sockets must be
    shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        command = [*switch, str(found[-1] / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    data, options = str(folder / "data"), f"-c listen_addresses= -c unix_socket_directories={folder}"
    try:
        call("initdb", "-D", data, "-U", "me", "-A", "trust", "--no-sync")
        call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            call("createdb", "-h", str(folder), "-U", "me", "mlflow")
            yield f"postgresql+psycopg2://me:{CANARY}@/mlflow?host={folder}"
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    if request.param == "sqlite":
        yield from _served(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    else:
        with _postgres() as backend:
            yield from _served(backend, tmp_path)


def _served(backend: str, folder: Path) -> Iterator[Server]:
    server = Server(backend, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _pipeline_run(uri: str, *keys: str) -> list[Version]:
    """What a pipeline run does with a registry, of students by these keys."""
    own = {"tracking_uri": uri, "prefix": "tiny/net"}
    parts = [Part(name="stage teacher", metrics={"seconds": 1.0})]
    parent = registry.track(PIPELINE, parts=parts, files={}, status="RUNNING", **own)
    students = [student(key, accuracy=0.5 + i / 10) for i, key in enumerate(keys)]
    versions = registry.register(students, {"ort 1t": model()}, parent=parent, **own)
    page = {"report.html": b"<html>"}
    registry.track(PIPELINE, parts=parts, files=page, status="FINISHED", **own)
    return promote(uri, *versions)


def _runs(uri: str) -> list[tuple[str, str]]:
    with session(uri) as client:
        (experiment,) = (e for e in client.search_experiments() if e.name == "tiny/net")
        runs = client.search_runs([experiment.experiment_id])
    return sorted((run.info.run_name, run.info.status) for run in runs)


@pytest.mark.slow
def test_a_server_keeps_everything_once_though_it_goes_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = server.uri
    first = _pipeline_run(uri, "a", "b")
    finished = [("ort 1t 50%", "FINISHED")] * 2 + [("quickstart", "FINISHED"), ("stage teacher", "FINISHED")]
    assert _runs(uri) == finished
    assert registry.list_models(uri) == first
    champion = registry.find("models:/tiny-net-ort-1t@champion", uri)
    assert (champion.version, champion.aliases) == (2, ("budget-50pct", "champion"))
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(registry.load(champion.model_uri, uri)(images), network()(images))

    # Stopped for some seconds: the call waits and goes on.
    server.signal(signal.SIGSTOP)
    threading.Timer(5, server.signal, [signal.SIGCONT]).start()
    begin = time.monotonic()
    assert _pipeline_run(uri, "a", "b") == first
    assert time.monotonic() - begin > 5
    assert _runs(uri) == finished

    # Killed in the middle of an upload: one line, and the next call completes.
    def killed(*arguments: object, **options: object) -> object:
        server.stop()
        return save(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("lana_ray.registry._publish.save", killed)
        with refuses("unreachable", "no tracking server answers") as error:
            _pipeline_run(uri, "a", "b", "c")
    assert CANARY not in str(error.value)
    server.start()
    assert [v.version for v in _pipeline_run(uri, "a", "b", "c")] == [1, 2, 3]
    assert [v.version for v in registry.list_models(uri) if "champion" in v.aliases] == [3]
    assert registry.end_abandoned("d0", tracking_uri=uri, prefix="tiny/net") >= 1
    assert _runs(uri) == sorted([*finished, ("ort 1t 50%", "FINISHED"), ("ort 1t 50%", "KILLED")])
    _no_secret(server)


def _no_secret(server: Server) -> None:
    """The password of the client's URI is in no file, tag or parameter of the server's."""
    with session(server.uri) as client:
        experiments = [e.experiment_id for e in client.search_experiments()]
        runs = client.search_runs(experiments)
        models = client.search_registered_models()
        versions = client.search_model_versions()
    for entry in [*runs, *models, *versions]:
        assert CANARY not in str(entry)
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    assert any(path.name == "model.pt2" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
