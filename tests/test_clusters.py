"""The files of clusters/ against Ray's own schema, without any machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "clusters").glob("*.yaml"))


def _load(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text())
    assert isinstance(data, dict)
    return data


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _load(request.param)


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


@pytest.mark.parametrize("role", ["head", "worker"])
def test_nodes_require_the_token(config: dict[str, Any], role: str) -> None:
    (start,) = (command for command in config[f"{role}_start_ray_commands"] if "ray start" in command)
    assert start.index("export RAY_AUTH_MODE=token") < start.index("ray start")
    assert "RAY_worker_niceness=0" in start
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "0.0.0.0" not in start


def test_the_code_is_shipped_from_the_checkout(config: dict[str, Any]) -> None:
    shipped = {local for local in config["file_mounts"].values() if not local.startswith("~")}
    assert shipped == {"lana_ray", "pyproject.toml", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in shipped)


def test_ray_is_pinned(config: dict[str, Any]) -> None:
    assert any("ray[default,train,tune]==" in command for command in config["setup_commands"])


def test_commands_are_shell(config: dict[str, Any]) -> None:
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True, capture_output=True)


def test_aws_pools_serve_a_target_each() -> None:
    config = _load(ROOT / "clusters" / "aws.yaml")
    head = config["head_node_type"]
    pools = {name: pool for name, pool in config["available_node_types"].items() if name != head}
    assert len(pools) >= 4
    for name, pool in pools.items():
        assert pool["labels"] == {"lana.target": name}
        assert pool["resources"]["lana_device"] == 1
        assert pool["min_workers"] == 0 < pool["max_workers"]
        assert pool["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "lana_device" not in config["available_node_types"][head]["resources"]


def test_onprem_takes_labels_from_the_machine(tmp_path: Path) -> None:
    """Runs the start command where ``ray`` prints its arguments: the file's values reach it, or none."""
    config = _load(ROOT / "clusters" / "onprem.yaml")
    start = config["worker_start_ray_commands"][-1]
    (tmp_path / "lana-venv" / "bin").mkdir(parents=True)
    (tmp_path / "lana-venv" / "bin" / "activate").write_text("ray() { printf '%s\\n' \"$@\"; }\n")

    def arguments() -> list[str]:
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "192.0.2.10"}
        done = subprocess.run(
            ["bash", "-c", start], env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.splitlines()

    assert arguments()[1:] == ["--address=192.0.2.10:6379", "--labels=", "--resources={}"]
    (tmp_path / "lana.env").write_text(
        "LANA_LABELS=lana.target=xeon\nLANA_RESOURCES='{\"lana_device\": 1}'\n"
    )
    assert arguments()[2:] == ["--labels=lana.target=xeon", '--resources={"lana_device": 1}']
