"""The files of clusters/ against Ray's own schema and the recipes of jobs/, without any machine."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from lana_ray.cluster.claims import GIB, PROCESS_BYTES, Ask, selector, share
from lana_ray.cluster.connection import Node
from lana_ray.config import Config, load_config
from tests.test_commands import DOCUMENTED

ROOT = Path(__file__).parents[1]
UP = sorted((ROOT / "clusters").glob("*.yaml"))
CLOUDS = [path for path in UP if path.stem != "onprem"]
KUBERAY = sorted((ROOT / "clusters" / "kuberay").glob("ray*.yaml"))
POLICY = ROOT / "clusters" / "kuberay" / "networkpolicy.yaml"
DOCKERFILE = ROOT / "clusters" / "kuberay" / "Dockerfile"
RECIPES = {path.name: load_config(path) for path in sorted((ROOT / "jobs").glob("imagenet_*.yaml"))}
"""Those for clusters; the others are for the machine they are started on."""

Resources = dict[str, float]


def _load(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text())
    assert isinstance(data, dict)
    return data


def _cluster_spec(path: Path) -> dict[str, Any]:
    """The cluster of a RayCluster or of a RayJob."""
    spec = _load(path)["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def _node_types(path: Path) -> tuple[str, dict[str, Any]]:
    """The head's node type and all of them, as Ray's autoscaler reads the file."""
    if path in KUBERAY:
        resource = {"metadata": {"name": "lana-ray", "namespace": "default"}, "spec": _cluster_spec(path)}
        config = _derive_autoscaling_config_from_ray_cr(resource)  # validates what it makes
    else:
        config = prepare_config(_load(path))
        validate_config(config)
    return config["head_node_type"], config["available_node_types"]


def _pools(path: Path) -> dict[str, Resources]:
    """What a machine of each target offers, by the label."""
    head, types = _node_types(path)
    return {pool["labels"]["lana.target"]: pool["resources"] for name, pool in types.items() if name != head}


def _role(path: Path, pool: str) -> str:
    """That of a pool, from the comment above it."""
    (comment,) = re.findall(rf'# Target "{pool}":((?:.*\n\s*#)*.*)', path.read_text())
    return "both" if "It also trains" in comment else "measure"


def _serves(pools: dict[str, Resources], recipe: Config) -> bool:
    return {target.node_label for target in recipe.targets} <= set(pools)


@pytest.fixture(params=UP, ids=lambda path: path.stem)
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


def test_the_dashboard_listens_on_loopback(config: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_the_code_is_shipped_from_the_checkout(config: dict[str, Any]) -> None:
    shipped = {local for local in config["file_mounts"].values() if not local.startswith("~")}
    assert shipped == {"lana_ray", "pyproject.toml", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in shipped)


def test_commands_are_shell(config: dict[str, Any]) -> None:
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True, capture_output=True)


def test_every_file_has_the_same_ray_which_the_package_accepts() -> None:
    pinned = {path: re.findall(r"'ray\[[a-z,]+\]==([^']+)'", path.read_text()) for path in UP}
    pinned |= {path: [_cluster_spec(path)["rayVersion"]] for path in KUBERAY}
    pinned[DOCKERFILE] = re.findall(r"RAY=([\d.]+)-py", DOCKERFILE.read_text())
    assert all(pinned.values())
    (version,) = {version for versions in pinned.values() for version in versions}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert version in needed.specifier


@pytest.mark.parametrize("path", [*UP, *KUBERAY, POLICY, DOCKERFILE], ids=lambda path: path.name)
def test_no_secret_and_no_open_port_is_written_down(path: Path) -> None:
    text = path.read_text()
    assert "0.0.0.0" not in text
    for pattern in (
        r"AKIA\w{16}",
        r"PRIVATE KEY",
        r"(?i)passw",
        r"(?i)secret_?(access_?)?key",
        r"//\w+:\w+@",
    ):
        assert not re.search(pattern, text), pattern
    assert not re.search(r"RAY_AUTH_TOKEN(?!=\"\$\()", text), "a token is read, never written down"
    assert not re.search(r"serviceType|enableIngress", text), "services stay inside the cluster"


def test_machines_of_aws_admit_nobody_by_default_and_guard_their_credentials() -> None:
    (path,) = (path for path in CLOUDS if path.stem == "aws")
    for pool in _load(path)["available_node_types"].values():
        node = pool["node_config"]
        assert node["SecurityGroupIds"], "Ray would make one that admits port 22 from everywhere"
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert all(disk["Ebs"]["Encrypted"] is True for disk in node["BlockDeviceMappings"])


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_pods_have_no_more_rights_than_they_need(path: Path) -> None:
    spec = _cluster_spec(path)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == rights
        # The autoscaler beside the head asks the API server for pods.
        assert ("automountServiceAccountToken" in pod) == (group is not spec["headGroupSpec"])


def test_only_a_cluster_s_own_pods_and_the_operator_reach_it() -> None:
    spec = _load(POLICY)["spec"]
    of_ray = {"podSelector": {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}}
    assert {"podSelector": spec["podSelector"]} == of_ray
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    assert of_ray in rule["from"]
    assert all("podSelector" in source and source["podSelector"] for source in rule["from"])


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_pools_come_and_go_with_their_targets(path: Path) -> None:
    config = _load(path)
    head = config["available_node_types"].pop(config["head_node_type"])
    assert "lana_device" not in head["resources"]
    assert head["labels"] == {"lana.role": "train"}
    assert len(config["available_node_types"]) >= 5
    for name, pool in config["available_node_types"].items():
        assert pool["labels"] == {"lana.target": name, "lana.role": _role(path, name)}
        assert pool["resources"]["lana_device"] == 1
        assert pool["min_workers"] == 0 < pool["max_workers"] <= config["max_workers"]
        assert re.search("(?i)'spot'", str(pool["node_config"]))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_groups_come_and_go_with_their_targets(path: Path) -> None:
    spec = _cluster_spec(path)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2", "the older one knows no labels"
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        role = _role(KUBERAY[0], group["groupName"])
        assert group["labels"] == {"lana.target": group["groupName"], "lana.role": role}
        assert group["resources"] == {"lana_device": "1"}, "strings, as the operator has them"
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"], "cores of its own"
        assert pod["nodeSelector"]
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]
    assert spec["headGroupSpec"]["labels"] == {"lana.role": "train"}
    for resources in _pools(path).values():
        assert resources["lana_device"] == 1


def test_a_job_s_cluster_is_that_of_the_file_beside_it() -> None:
    cluster, job = (_cluster_spec(path) for path in KUBERAY)
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert job["headGroupSpec"] == cluster["headGroupSpec"]
    for group in job["workerGroupSpecs"]:
        assert group == groups[group["groupName"]]


def test_a_job_runs_a_recipe_that_its_cluster_serves() -> None:
    job = _load(ROOT / "clusters" / "kuberay" / "rayjob.yaml")
    assert (_load(KUBERAY[0])["kind"], job["kind"]) == ("RayCluster", "RayJob")
    python, entry, recipe, *changes = job["spec"]["entrypoint"].split()
    (workdir,) = re.findall(r"WORKDIR (\S+)", DOCKERFILE.read_text())
    assert python == "python"
    for file in (entry, recipe):
        assert (ROOT / Path(file).relative_to(workdir)).is_file()
    config = load_config(ROOT / Path(recipe).relative_to(workdir), tuple(changes[1::2]))
    assert set(changes[::2]) == {"--set"}
    assert {target.node_label for target in config.targets} == set(_pools(KUBERAY[1]))


@pytest.mark.parametrize("name", RECIPES)
def test_some_cluster_serves_a_recipe(name: str) -> None:
    assert any(_serves(_pools(path), RECIPES[name]) for path in [*CLOUDS, *KUBERAY])


@pytest.mark.parametrize("path", [*CLOUDS, *KUBERAY], ids=lambda path: path.stem)
def test_a_cluster_serves_the_recipes_it_names(path: Path) -> None:
    named = {RECIPES[name] for name in re.findall(r"jobs/(imagenet_\w+\.yaml)", path.read_text())}
    assert named
    pools = _pools(path)
    for recipe in named:
        assert _serves(pools, recipe)
        for target in recipe.targets:
            pool = pools[target.node_label]
            assert pool["CPU"] >= target.threads
            assert ("GPU" in pool) == target.device.startswith("cuda")


@pytest.mark.parametrize("path", [*CLOUDS, *KUBERAY], ids=lambda path: path.stem)
def test_a_pool_that_trains_holds_a_worker_of_the_recipes_and_its_memory(path: Path) -> None:
    """Ray's autoscaler brings no node whose memory it does not know for a worker that claims some."""
    _, types = _node_types(path)
    known = [
        Node(id=name, name=name, labels=pool["labels"], resources={"memory": 0, **pool["resources"]})
        for name, pool in types.items()
    ]
    if path.stem == "aws":  # whose instance types Ray asks for their memory
        known = [replace(node, resources={**node.resources, "memory": 32 * GIB}) for node in known]
    for recipe in {RECIPES[name] for name in re.findall(r"jobs/(imagenet_\w+\.yaml)", path.read_text())}:
        memory = PROCESS_BYTES + int(recipe.distill.memory_gb * GIB)
        ask = Ask(most=1, gpus=recipe.ray.gpus_per_worker, cpus=recipe.ray.cpus_per_worker, memory=memory)
        count, claim = share(ask, known)
        assert (count, claim.memory) == (1, memory)
        allowed = selector(known, claim, [target.node_label for target in recipe.targets])
        assert allowed == {"lana.role": "!in(measure)", "lana.target": allowed["lana.target"]}


@pytest.mark.parametrize("path", [*CLOUDS, *KUBERAY], ids=lambda path: path.stem)
def test_a_recipe_names_every_pool(path: Path) -> None:
    targets = {target.node_label for recipe in RECIPES.values() for target in recipe.targets}
    assert set(_pools(path)) <= targets


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_the_head_knows_where_models_are_registered(path: Path, tmp_path: Path) -> None:
    """A run in a bucket needs a tracking server: what is written by the setup reaches ``ray start``."""
    config = _load(path)
    writes = [c for c in (*config["setup_commands"], *config["head_setup_commands"]) if "lana.env" in c]
    (tmp_path / "lana-venv" / "bin").mkdir(parents=True)
    (tmp_path / "lana-venv" / "bin" / "activate").write_text('ray() { echo "$MLFLOW_TRACKING_URI"; }\n')
    shell = "\n".join([*writes, config["head_start_ray_commands"][-1]])
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", shell], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("https://")


def test_azure_is_asked_for_what_ray_s_template_knows() -> None:
    template = Path(ray.autoscaler.__file__).parent / "_private" / "_azure" / "azure-vm-template.json"
    known = {*json.loads(template.read_text())["parameters"], "availability_zone"}
    for pool in _load(ROOT / "clusters" / "azure.yaml")["available_node_types"].values():
        asked = pool["node_config"]["azure_arm_parameters"]
        assert set(asked) <= known
        assert isinstance(asked["imageSku"], str)


def test_google_is_told_the_zone_and_the_project_everywhere() -> None:
    config = _load(ROOT / "clusters" / "gcp.yaml")
    provider, nodes = config["provider"], str(config["available_node_types"])
    assert set(re.findall(r"zones/([^/]+)/", nodes)) == {provider["availability_zone"]}
    assert set(re.findall(r"@([\w-]+)\.iam", nodes)) == {provider["project_id"]}
    assert provider["availability_zone"].startswith(f"{provider['region']}-")


def test_onprem_s_job_asks_for_the_label_that_a_machine_is_given() -> None:
    given = re.findall(r"LANA_LABELS=lana\.target=(\w+)", (ROOT / "clusters" / "onprem.yaml").read_text())
    (job,) = (words for name, words in DOCUMENTED.values() if name == "onprem.yaml" and "submit" in words)
    recipe, *changes = job[job.index("--") + 3 :]
    config = load_config(ROOT / recipe, tuple(changes[1::2]))
    assert {target.node_label for target in config.targets} == set(given)


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

    address, log_monitor, *rest = arguments()[1:]
    assert (address, rest) == ("--address=192.0.2.10:6379", ["--labels=", "--resources={}"])
    assert log_monitor == "--include-log-monitor=False", "it would outlive the head, and with it the cluster"
    (tmp_path / "lana.env").write_text(
        "LANA_LABELS=lana.target=xeon\nLANA_RESOURCES='{\"lana_device\": 1}'\n"
    )
    assert arguments()[3:] == ["--labels=lana.target=xeon", '--resources={"lana_device": 1}']


def test_onprem_commands_of_ray_itself_find_ray(tmp_path: Path) -> None:
    """``ray down`` runs a plain ``ray stop``, in a shell that reads ``.bashrc``; the setup may run often."""
    (setup,) = (c for c in _load(ROOT / "clusters" / "onprem.yaml")["setup_commands"] if ".bashrc" in c)
    program = tmp_path / "lana-venv" / "bin" / "ray"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho stopped\n")
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", setup], env=environment, check=True)
    stop = ["bash", "-c", "source ~/.bashrc; ray stop"]
    done = subprocess.run(stop, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "stopped\n"
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 1
