from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import ray

from lana_ray.cluster import connection as cluster
from lana_ray.config import RayConfig

from ..errors import refuses


def _run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Finding a cluster


def test_local_means_a_cluster_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.find_cluster("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.find_cluster("auto") is None


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_ray_address_is_none(empty: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where no cluster left its address
    monkeypatch.setenv("RAY_ADDRESS", empty)
    assert cluster.find_cluster("auto") is None


def test_a_cluster_that_is_gone_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with refuses("unreachable", "RAY_ADDRESS 127.0.0.1:1"):
        cluster.find_cluster("auto")


def test_what_a_dead_cluster_left_behind_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert cluster.find_cluster("auto") is None


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:seven"])
def test_an_address_without_a_cluster_is_named(address: str) -> None:
    with refuses("unreachable", f"ray.address {address}"):
        cluster.find_cluster(address)


def test_a_dashboards_address_points_to_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with refuses("invalid_setting", "RAY_ADDRESS http://127.0.0.1:8265", "ray job submit"):
        cluster.find_cluster("auto")


# The folder of a local cluster


@pytest.fixture
def no_folder_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_folder_set")
@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_the_folder_is_the_environments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", "/proc/nothing")
        monkeypatch.setenv(name, folder)
        assert cluster.ray_folder() == f"{folder}/ray"


@pytest.mark.usefixtures("no_folder_set")
@pytest.mark.parametrize("empty", ["RAY_TMPDIR", "TMPDIR"])
def test_an_empty_variable_names_no_folder(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(empty, "")
    assert cluster.ray_folder() == "/tmp/ray"


@pytest.mark.usefixtures("no_folder_set")
@pytest.mark.parametrize("kind", ["long", "a file", "not writable"])
def test_a_folder_of_no_use_is_told_and_another_taken(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"long": str(tmp_path / ("d" * 60)), "a file": "/etc/passwd", "not writable": "/proc/sys"}[kind]
    monkeypatch.setenv("TMPDIR", place)
    assert cluster.ray_folder() == "/tmp/ray"
    said = capsys.readouterr().out
    assert said.startswith(f"TMPDIR {place} ")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("no_folder_set")
def test_a_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("TMPDIR", "own")
        assert cluster.ray_folder() == f"{folder}/own/ray"


@pytest.mark.usefixtures("no_folder_set")
def test_where_no_folder_is_of_use_each_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/sys")
    monkeypatch.setattr(cluster, "_useless", lambda place: "is full")
    with refuses("not_writable", "/proc/sys is full", "/tmp is full", "TMPDIR"):
        cluster.ray_folder()


# Being connected


@pytest.mark.parametrize(("cpus", "devices"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 2)])
def test_a_machine_without_a_cluster_measures_where_others_do_not_disturb_it(cpus: int, devices: int) -> None:
    assert cluster._devices(cpus) == devices


@pytest.mark.usefixtures("ray_cluster")
def test_a_local_cluster_offers_a_device_and_training_is_quiet() -> None:
    @ray.remote
    def environment() -> tuple[str | None, str | None]:
        return os.environ.get("OMP_WAIT_POLICY"), os.environ.get("RAY_AUTH_MODE")

    training = environment.options(runtime_env=cluster.TRAINING_ENV)

    (node,) = cluster.nodes()
    assert (node.cpus, node.devices, node.labels) == (2, 1, {})
    assert ray.get([environment.remote(), training.remote()]) == [(None, "token"), ("PASSIVE", "token")]


@pytest.mark.usefixtures("ray_cluster")
def test_a_running_instance_is_used_and_left_running() -> None:
    before = cluster.nodes()
    with cluster.connect(RayConfig(address="127.0.0.1:1")):
        assert cluster.nodes() == before
    assert ray.is_initialized()


@pytest.mark.usefixtures("ray_cluster")
def test_another_process_joins_by_ray_address_and_leaves_the_cluster_alone() -> None:
    script = """
        from lana_ray.cluster import connection as cluster
        from lana_ray.config import RayConfig
        with cluster.connect(RayConfig()):
            print(cluster.nodes()[0].id)
    """
    (node,) = cluster.nodes()
    assert _run(script, RAY_ADDRESS=ray.get_runtime_context().gcs_address).strip() == node.id
    assert cluster.nodes() == [node]


@pytest.mark.slow
def test_a_node_that_joins_is_waited_for_and_measured_on() -> None:
    script = """
        import ray
        from ray.cluster_utils import Cluster
        from lana_ray.cluster import connection as cluster
        from lana_ray.config import RayConfig, Target
        from lana_ray.cluster.placement import assign_targets

        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        with cluster.connect(RayConfig(address=machines.address)):
            join = {"num_cpus": 2, "resources": {"lana_device": 1}, "labels": {"lana.target": "arm"}}
            placement = assign_targets(
                [Target(name="arm", threads=2)],
                cluster.nodes(),
                wait_s=60,
                on_wait=lambda said: machines.add_node(**join),
            )["arm"]
            where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
            node = ray.get(where.options(**placement.options()).remote())
            print({n.id: n.target for n in cluster.nodes()}[node], placement.actors)
        machines.shutdown()
    """
    said = _run(script, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)
    assert said.split()[-2:] == ["arm", "1"]
