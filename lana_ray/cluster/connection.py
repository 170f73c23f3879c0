"""Connects to Ray: finds a cluster or starts a local one, lists its nodes and calls functions on them.

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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lana_ray.cluster.authentication import authenticated
from lana_ray.cluster.ray_internals import folder_option, on_loopback, started_cluster
from lana_ray.config import RayConfig
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import muted, say
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
_FOLDERS = ("RAY_TMPDIR", "TMPDIR")
_SOCKET = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_LONGEST = (103 if sys.platform == "darwin" else 107) - _SOCKET
"""Longest usable folder in bytes: the system refuses longer paths of sockets."""
_REACH_S = 5.0
_SAY_S = 30.0
"""Time between two lines that name the nodes still waited for."""
_AT_ONCE = 2
"""Most measurements at a time on a machine without a cluster; more would slow one another down."""
_CPUS_EACH = 2
"""CPUs for each of them. With one alone, everything else disturbs them: on two virtual CPUs, two at a time
have up to three times the interquartile range of one ("Measurements at a time" in ``jobs/RESULTS.md``)."""
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
    machine = _local_cluster(num_cpus) if address is None else {}
    with authenticated(create=address is None):
        try:
            with terminated_as_before(), on_loopback(address is None or _is_local(address)):
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


def _local_cluster(num_cpus: int | None) -> dict[str, Any]:
    """Returns the arguments of ``ray.init`` that start a cluster on this machine."""
    # Ray counts CPUs unless this process may use only some: it knows the limits of containers.
    pinned = usable_cpus() if usable_cpus() != os.cpu_count() else None
    devices = {DEVICE: _devices(num_cpus or usable_cpus())}
    machine = {"num_cpus": num_cpus or pinned, "resources": devices, "include_dashboard": False}
    return machine | folder_option(ray_folder())


def ray_folder() -> str:
    """Returns the folder in which a local cluster keeps its sockets and logs.

    It is in ``RAY_TMPDIR`` or ``TMPDIR``, else in another usable folder; raises UserError if there is none.
    """
    variable = next((name for name in _FOLDERS if os.environ.get(name)), None)
    first = os.path.abspath(os.environ[variable]) if variable else "/tmp"
    reasons = {place: _useless(place) for place in (first, "/tmp", tempfile.gettempdir())}
    place = next((place for place, reason in reasons.items() if reason is None), None)
    if place is None:
        tried = "; ".join(f"{place} {reason}" for place, reason in reasons.items())
        raise UserError(
            "not_writable", f"no folder for Ray's sockets: {tried}; set TMPDIR to a short, writable folder"
        )
    if place != first:
        named = f"{variable or 'the folder'} {first}"
        say(f"{named} {reasons[first]}; Ray keeps its sockets and logs in {place}/ray")
    return f"{place}/ray"


def _useless(place: str) -> str | None:
    """Returns why Ray cannot use a folder, such as ``cannot be written``; None if it can."""
    if len(os.fsencode(place)) > _LONGEST:
        return f"is longer than the {_LONGEST} bytes that sockets allow"
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def _is_local(address: str) -> bool:
    """Whether a cluster listens only on loopback: a local one that another process started."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    return not _answers(f"{ray.util.get_node_ip_address()}:{port}")


def is_on_loopback() -> bool:
    """Whether the connected cluster is a local one, which no other machine can reach."""
    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        started = started_cluster()
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


def ask_nodes(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    asked: Sequence[Node],
    *,
    what: str,
    limit_s: float,
) -> Iterator[tuple[Node, Any, BaseException | None]]:
    """Calls ``function(*arguments)`` on each node without claiming resources, whatever else runs there.

    Args:
        what: what the nodes have to say, for lines such as "waiting for NODE to say WHAT".
        limit_s: time limit for all nodes together, in seconds.

    Yields:
        The node, its answer, and the exception if there is no answer; in the order in which nodes answer.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    strategies = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in asked]
    calls = [task.options(scheduling_strategy=strategy).remote(*arguments) for strategy in strategies]
    waiting = dict(zip(calls, asked, strict=True))
    start = time.monotonic()
    try:
        while waiting and time.monotonic() - start < limit_s:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=min(_SAY_S, limit_s))
            for ended in ready:
                yield waiting.pop(ended), *_answer(ended)
            if not ready:
                say(f"waiting for {', '.join(sorted(node.name for node in waiting.values()))} to say {what}")
        for node in waiting.values():
            yield node, None, TimeoutError(f"no answer within {limit_s:g} s")
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


def _answer(ended: Any) -> tuple[Any, BaseException | None]:
    try:
        return ray.get(ended), None
    except RayTaskError as error:
        return None, error.cause
    except RayError as error:
        return None, error


def node_count() -> int | None:
    """Returns the number of living machines of the cluster; None if no cluster is connected."""
    return len(nodes()) if ray.is_initialized() else None


def this_machine() -> Node:
    """Returns the node that a local cluster on this machine would have, without starting Ray."""
    import torch

    memory = _NOT_OBJECTS * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Node(
        id="local",
        name=socket.gethostname(),
        labels={},
        resources={
            "CPU": usable_cpus(),
            "GPU": torch.cuda.device_count(),
            "memory": memory,
            DEVICE: _devices(usable_cpus()),
        },
    )


def _devices(cpus: int) -> int:
    return max(1, min(_AT_ONCE, cpus // _CPUS_EACH))
