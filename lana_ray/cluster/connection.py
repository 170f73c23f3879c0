"""Connecting to Ray: finding a cluster or starting a local one, and its nodes.

A node offers itself to a target with the label ``lana.target=<name>`` and one ``lana_device`` for every
device that can be measured at a time: the label says which hardware, the resource keeps others away. The
label ``lana.role`` says whether it measures, trains or does both; without it, a node that carries a target
measures, and any other trains.
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
"""How often a task is run again whose process died or was killed for its memory."""

TRAINING_ENV = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}
"""Runtime environment of whatever trains or evaluates: OpenMP threads that wait awake for work make a machine
crawl that is busy with other workers. Samplers have their CPUs to themselves and measure with OpenMP's
defaults, as networks are deployed."""

_REACH_S = 5.0
_NOT_OBJECTS = 0.7
"""Share of a machine's memory that Ray leaves to processes; the rest is for its object store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    name: str
    labels: Mapping[str, str]
    """The labels given to ``ray start``; Ray's own are left out."""
    resources: Mapping[str, float]
    alive: bool = True

    @property
    def target(self) -> str | None:
        """The target label it carries."""
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
        """Measurements that may run at a time."""
        return int(self.resources.get(DEVICE, 0))

    @property
    def memory(self) -> float:
        """Bytes that its processes may claim; infinite if Ray does not report them."""
        return self.resources.get("memory", math.inf)

    def fits(self, cpus: int, gpus: float) -> int:
        """How often a claim on so many CPUs and GPUs fits on it."""
        count = self.cpus // cpus
        return min(count, int(self.gpus / gpus)) if gpus else count


@contextmanager
def connect(config: RayConfig, *, num_cpus: int | None = None) -> Iterator[None]:
    """Connects to the cluster of the configuration, or starts a local one; leaves it at the end.

    A Ray instance that is already connected is used as it is and left running. Output of the workers
    stays in Ray's log files, their exceptions arrive with the results; ``RAY_LOG_TO_DRIVER=1`` shows all.
    On a cluster of several machines lana_ray must be installed on each; ``ray job submit --working-dir``
    ships the code of a user's own teacher along.

    Args:
        num_cpus: CPUs of a local cluster; by default those this process may use.

    Raises:
        UserError: when the address does not answer or refuses the authentication token.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_task_oom_retries", str(MAX_RETRIES))  # without a limit otherwise
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: all else disturbs a sampler
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
                f"ray.address {address}: the cluster refuses the connection; "
                "copy ~/.ray/auth_token of its head node to this machine"
            ) from None
        except Exception as error:  # Ray has no class of its own for it
            if "timed out during startup" not in str(error):
                raise
            raise UserError("Ray did not start in time, as this machine is very busy; run it again") from None
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            with muted(2):  # Ray logs whom it could not tell any more
                ray.shutdown()
            raise
        finally:
            ray.shutdown()


@contextmanager
def _on_loopback(wanted: bool) -> Iterator[None]:
    """Makes Ray use loopback alone for this process and a cluster it starts, as by default on macOS."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not wanted
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _is_local(address: str) -> bool:
    """Whether a cluster listens on loopback alone: a local one that another process started."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    return not _answers(f"{ray.util.get_node_ip_address()}:{port}")


def is_on_loopback() -> bool:
    """Whether the connected cluster is a local one, which nothing beyond this machine can reach."""
    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback


def _pinned_cpus() -> int | None:
    """CPUs this process may use where they are fewer than the machine's; otherwise None: Ray counts."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed if allowed != os.cpu_count() else None


def find_cluster(address: str) -> str | None:
    """The address to connect to, None where a local cluster is to be started.

    ``auto`` looks at ``RAY_ADDRESS``, then for what ``ray start`` or ``ray up`` left on this machine.

    Raises:
        UserError: when nothing answers at an address that was given.
    """
    given, name = address, "ray.address"
    variable = os.environ.get("RAY_ADDRESS", "").strip()
    if address == "auto" and variable:  # set and empty is as not set, for Ray too
        given, name = variable, "RAY_ADDRESS"
    if given == "local":
        return None
    if given == "auto":
        started: str | None = find_bootstrap_address(None)
        return started if started and _answers(started) else None
    if "://" in given:
        raise UserError(
            f"{name} {given}: connect from one of the cluster's machines with host:port, "
            "or send the run there with ray job submit"
        )
    if not _answers(given):
        raise UserError(
            f"{name} {given}: no Ray cluster answers there; expected host:port, usually port 6379"
        )
    return given


def _answers(address: str) -> bool:
    """Whether something listens there; Ray itself would try for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def nodes(*, gone: bool = False) -> list[Node]:
    """The machines of the connected cluster that are alive, in a stable order.

    Args:
        gone: include machines that have left, as far as Ray remembers them: their labels, no resources.
    """
    found = (
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
    return sorted(found, key=lambda node: (node.name, node.id))


def node_count() -> int | None:
    """Machines of the cluster that are alive, None where none is connected."""
    return len(nodes()) if ray.is_initialized() else None


def this_machine() -> Node:
    """What a local cluster on this machine would offer, found without starting Ray."""
    import torch

    cpus = _pinned_cpus() or os.cpu_count() or 1
    memory = _NOT_OBJECTS * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Node(
        id="local",
        name=socket.gethostname(),
        labels={},
        resources={"CPU": cpus, "GPU": torch.cuda.device_count(), "memory": memory, DEVICE: 1},
    )
