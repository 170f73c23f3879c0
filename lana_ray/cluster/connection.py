"""Connects to Ray: finds a cluster or starts a local one, and lists its nodes.

A node serves a target if it carries the label ``lana.target=<name>`` and one resource ``lana_device`` per
device that can be measured on at a time: the label names the hardware, the resource keeps other measurements
away. The label ``lana.role`` says whether the node measures, trains or does both; without it, a node that
carries a target measures, and any other node trains.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.services import find_bootstrap_address
from ray.exceptions import AuthenticationError

from lana_ray.cluster.authentication import authenticated
from lana_ray.cluster.scratch import ray_folder
from lana_ray.config import RayConfig
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import muted
from lana_ray.monitoring.signals import terminated_as_before

LABEL = "lana.target"
ROLE = "lana.role"
ROLES = ("measure", "train", "both")
DEVICE = "lana_device"
MAX_RETRIES = 3
"""How often a task is retried if its process died or was killed for its memory."""

TRAINING_ENV = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}
"""Runtime environment of training and evaluation: actively waiting OpenMP threads would slow down a machine
that is busy with other workers. Samplers have their CPUs to themselves and measure with OpenMP's defaults,
as networks are deployed."""

_DEFAULTS = {
    "RAY_task_oom_retries": str(MAX_RETRIES),  # Ray's own default is no limit
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own default is 15, with which any process disturbs a sampler
}
"""Environment variables that are set unless the user has set them."""
_REACH_S = 5.0
_NOT_OBJECTS = 0.7
"""Share of a machine's memory that Ray leaves to processes; its object store takes the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    name: str
    labels: Mapping[str, str]
    """Labels passed to ``ray start``, without Ray's own."""
    resources: Mapping[str, float]
    alive: bool = True

    @property
    def target(self) -> str | None:
        """The value of its label ``lana.target``; None without one."""
        return self.labels.get(LABEL)

    @property
    def role(self) -> str:
        """One of ``ROLES``."""
        label = self.labels.get(ROLE)
        if label in ROLES:
            return label
        return "measure" if self.target else "train"

    @property
    def cpus(self) -> int:
        return int(self.resources.get("CPU", 0))

    @property
    def gpus(self) -> int:
        return int(self.resources.get("GPU", 0))

    @property
    def devices(self) -> int:
        """How many measurements may run at a time."""
        return int(self.resources.get(DEVICE, 0))

    @property
    def memory(self) -> float:
        """Bytes that its processes may claim; infinite if Ray does not report any."""
        return self.resources.get("memory", math.inf)

    def fits(self, cpus: int, gpus: float) -> int:
        """Returns how many workers that claim these CPUs and GPUs fit on it."""
        count = self.cpus // cpus
        return min(count, int(self.gpus / gpus)) if gpus else count


@contextmanager
def connect(config: RayConfig, *, num_cpus: int | None = None) -> Iterator[None]:
    """Connects to the configured cluster, or starts a local one; disconnects at the end.

    If Ray is already connected, that connection is used and left open. The workers' output stays in Ray's
    log files, their exceptions arrive with the results; ``RAY_LOG_TO_DRIVER=1`` shows everything. On a
    cluster of several machines, lana_ray must be installed on each; ``ray job submit --working-dir`` sends
    the code of a user's own teacher along.

    Args:
        num_cpus: CPUs of a local cluster; by default those that this process may use.

    Raises:
        UserError: the address does not answer or refuses the authentication token.
    """
    if ray.is_initialized():
        yield
        return
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    address = find_cluster(config.address)
    machine: dict[str, Any] = {}
    if address is None:
        machine = {
            "num_cpus": num_cpus or _pinned_cpus(),
            "resources": {DEVICE: 1},
            "include_dashboard": False,
            "_temp_dir": ray_folder(),
        }
    with authenticated(create=address is None):
        try:
            with terminated_as_before(), _on_loopback(address is None or _is_local(address)):
                ray.init(
                    address=address or "local",
                    logging_level=logging.WARNING,
                    log_to_driver=os.environ.get("RAY_LOG_TO_DRIVER") == "1",
                    **machine,
                )
        except (AuthenticationError, ConnectionError):
            raise UserError(
                "unreachable",
                f"ray.address {address}: the cluster refuses the connection; "
                "copy ~/.ray/auth_token from its head node to this machine",
            ) from None
        except Exception as error:  # Ray has no class for a start that times out
            if "timed out during startup" not in str(error):
                raise
            raise UserError(
                "failed",
                "Ray did not start in time on this machine; free some of its CPUs and rerun the same command",
            ) from None
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            # Ray logs the processes that it can no longer reach.
            with muted(2):
                ray.shutdown()
            raise
        finally:
            ray.shutdown()


@contextmanager
def _on_loopback(enabled: bool) -> Iterator[None]:
    """Makes Ray use only loopback here and in a cluster it starts, as it does on macOS by default."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not enabled
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _is_local(address: str) -> bool:
    """Whether a cluster listens only on loopback: a local one that another process started."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    return not _answers(f"{ray.util.get_node_ip_address()}:{port}")


def is_on_loopback() -> bool:
    """Whether the connected cluster is a local one, which no other machine can reach."""
    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback


def _pinned_cpus() -> int | None:
    """Returns the number of CPUs that this process may use; None if it may use all, then Ray counts them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed if allowed != os.cpu_count() else None


def find_cluster(address: str) -> str | None:
    """Returns the address to connect to; None if a local cluster has to be started.

    ``auto`` reads ``RAY_ADDRESS``, then looks for a cluster that ``ray start`` or ``ray up`` started on this
    machine.

    Raises:
        UserError: the address is not host:port, or nothing answers there.
    """
    setting = "ray.address"
    variable = os.environ.get("RAY_ADDRESS", "").strip()
    # Like Ray, treats an empty variable as unset.
    if address == "auto" and variable:
        address, setting = variable, "RAY_ADDRESS"
    if address == "local":
        return None
    if address == "auto":
        started: str | None = find_bootstrap_address(None)
        return started if started and _answers(started) else None
    if "://" in address:
        raise UserError(
            "invalid_setting",
            f"{setting} {address}: connect from one of the cluster's machines with host:port, "
            "or send the run there with ray job submit",
        )
    if not _answers(address):
        raise UserError(
            "unreachable",
            f"{setting} {address}: no Ray cluster answers there; expected host:port, usually port 6379",
        )
    return address


def _answers(address: str) -> bool:
    """Whether something listens at the address; Ray would try for minutes and then exit the process."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def nodes(*, gone: bool = False) -> list[Node]:
    """The living machines of the cluster by name; ``gone`` adds those that left, without resources."""
    listed = (
        Node(
            id=node["NodeID"],
            name=node["NodeName"],
            labels={key: value for key, value in node["Labels"].items() if not key.startswith("ray.io/")},
            resources=node["Resources"],
            alive=node["Alive"],
        )
        for node in ray.nodes()
        if node["Alive"] or gone
    )
    return sorted(listed, key=lambda node: (node.name, node.id))


def node_count() -> int | None:
    """Returns the number of living machines of the cluster; None if no cluster is connected."""
    return len(nodes()) if ray.is_initialized() else None


def this_machine() -> Node:
    """Returns the node that a local cluster on this machine would have, without starting Ray."""
    import torch

    cpus = _pinned_cpus() or os.cpu_count() or 1
    memory = _NOT_OBJECTS * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Node(
        id="local",
        name=socket.gethostname(),
        labels={},
        resources={"CPU": cpus, "GPU": torch.cuda.device_count(), "memory": memory, DEVICE: 1},
    )
