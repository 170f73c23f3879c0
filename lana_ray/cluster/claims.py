"""Decides which nodes train, how many workers fit on them, and what resources each worker claims.

Training, distillation, scores and evaluations run on nodes whose role is ``train`` or ``both``. They run on
nodes that measure only if no other node has a CPU.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.autoscaler.sdk import request_resources

from lana_ray.cluster import connection as cluster
from lana_ray.cluster.connection import LABEL, ROLE, Node
from lana_ray.config import Config, RayConfig
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say

GIB = 2**30
PROCESS_BYTES = GIB
"""Memory of a worker's process: Python with PyTorch, timm and Ray takes 0.9 GiB."""
_THREADS_GAIN = 0.9
"""Exponent of the speed-up by threads; it is 1 for workers, so two workers beat one with two threads."""
_POLL_S = 2.0
_SAY_EVERY_S = 30.0
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
"""Pattern of the label values that Ray accepts; no node can carry any other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Resources that one worker claims on its node."""

    cpus: int
    gpus: float = 0
    memory: int = 0
    """Bytes."""

    @property
    def resources(self) -> dict[str, float]:
        """The claim by Ray's names of resources, without those it does not need."""
        named = {"CPU": float(self.cpus), "GPU": float(self.gpus), "memory": float(self.memory)}
        return {name: amount for name, amount in named.items() if amount}

    def fits(self, node: Node) -> int:
        """Returns how many such workers fit on a node."""
        count = node.fits(self.cpus, self.gpus)
        return int(min(count, node.memory / self.memory)) if self.memory else count

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU{'s' * (self.gpus != 1)}" if self.gpus else ""
        memory = f", {self.memory / GIB:.1f} GiB" if self.memory else ""
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)}{gpus}{memory}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A request for as many workers as fit on the nodes, up to a bound."""

    most: int
    memory: int = PROCESS_BYTES
    """Bytes per worker."""
    gpus: float = 0
    cpus: int | None = None
    """CPUs per worker; None shares all CPUs of a node among its workers."""
    parts: int | None = None
    """Number of parts of the work, which the number of workers must divide; None allows any number."""


def size(most: int, parts: int | None) -> int:
    """Returns the largest number of workers up to ``most`` that divides ``parts``; 0 if none does."""
    if parts is None:
        return most
    return max((n for n in range(1, most + 1) if parts % n == 0), default=0)


def trainers(nodes: Iterable[Node]) -> list[Node]:
    """Returns the living nodes that may train; nodes that measure only if there has never been another.

    Args:
        nodes: all nodes, including those that have left.
    """
    able = [node for node in nodes if node.cpus or not node.alive]
    return [node for node in [n for n in able if n.role != "measure"] or able if node.alive]


def held(nodes: Iterable[Node], claim: Claim) -> int:
    """Returns how many workers fit on the nodes that may train."""
    return sum(claim.fits(node) for node in trainers(nodes))


def share(ask: Ask, nodes: Sequence[Node]) -> tuple[int, Claim]:
    """Decides how many workers to start on the nodes, and what each claims.

    Workers fill the nodes, up to the bound of ``ask``, each with as many CPUs as its node has left for it.
    All GPUs are used before CPUs are added. If no node has the memory of one worker, each worker claims the
    memory of the largest node.

    Returns:
        The number of workers and the claim of each; 0 and the smallest claim if none fits.
    """
    able = trainers(nodes)
    having = [node for node in able if node.fits(ask.cpus or 1, ask.gpus)]
    memory = int(min(ask.memory, max((node.memory for node in having), default=ask.memory)))
    widths = [ask.cpus] if ask.cpus else range(1, max((node.cpus for node in having), default=1) + 1)
    # The fallback claims no memory: an autoscaler that does not know its nodes' memory would bring none.
    best, choice = 0.0, (0, Claim(cpus=ask.cpus or 1, gpus=ask.gpus))
    for cpus in widths:
        claim = Claim(cpus=cpus, gpus=ask.gpus, memory=memory)
        count = size(min(ask.most, sum(claim.fits(node) for node in having)), ask.parts)
        speed = count * (1.0 if ask.gpus else cpus**_THREADS_GAIN)
        if count and speed >= best - 1e-9:
            best, choice = speed, (count, claim)
    return choice


def occupied(nodes: Sequence[Node], claim: Claim, count: int) -> list[Node]:
    """Returns the nodes with what ``count`` workers leave free, which fill one node after another."""
    able, left = trainers(nodes), []
    for node in nodes:
        here = min(count, claim.fits(node)) if node in able else 0
        count -= here
        taken = claim.resources
        free = {name: amount - here * taken.get(name, 0) for name, amount in node.resources.items()}
        left.append(replace(node, resources=free))
    return left


def selector(nodes: Sequence[Node], claim: Claim, targets: Iterable[str]) -> dict[str, str]:
    """Returns Ray's label selector for work that trains; empty if nodes that measure must train.

    The selector excludes nodes, since Ray cannot ask for nodes that lack a label: those with the role
    ``measure``, and those that measure by default because they carry a target. Targets of the run that no
    node has carried yet are excluded too, as long as other nodes hold a worker: otherwise an autoscaler could
    bring a node of a target for training.

    Args:
        nodes: all nodes, including those that have left: a target's nodes may come back.
        targets: the values of ``lana.target`` that the run measures on.
    """
    able = trainers(nodes)
    if any(node.role == "measure" for node in able):
        return {}
    measuring = [node for node in nodes if node.role == "measure" and node.target]
    excluded = {node.target for node in measuring}
    if held(nodes, claim):
        excluded |= {label for label in targets if _LABEL.fullmatch(label)}
    both = {node.target for node in nodes if node.role != "measure"}
    rules = {
        ROLE: ["measure"],
        LABEL: sorted(label for label in excluded - both if label),
        "ray.io/node-id": [node.id for node in measuring if node.alive and node.target in both],
    }
    return {key: f"!in({', '.join(values)})" for key, values in rules.items() if values}


def node_labels(config: Config) -> list[str]:
    """Returns the values of ``lana.target`` that a run measures on."""
    return [target.node_label for target in config.targets]


def await_room(claim: Claim, config: Config, *, count: int = 1, wait_s: float | None = None) -> None:
    """Waits until ``count`` workers fit on the nodes that train; asks an autoscaler for missing nodes.

    Ray itself would wait silently and without a limit.

    Args:
        wait_s: how long to wait, in seconds; ``ray.label_wait_s`` by default.

    Raises:
        UserError: no such node came; names what a worker needs, and what the largest node has.
    """
    limit_s = config.ray.label_wait_s if wait_s is None else wait_s
    start, said, asked = time.monotonic(), -_SAY_EVERY_S, False
    try:
        while held(nodes := cluster.nodes(gone=True), claim) < count:
            passed = time.monotonic() - start
            if passed >= limit_s:
                raise UserError("no_node", no_room(claim, config.ray, nodes, count))
            if not asked:
                rules = selector(nodes, claim, node_labels(config))
                request_resources(bundles=count * [claim.resources], bundle_label_selectors=count * [rules])
                asked = True
            if passed - said >= _SAY_EVERY_S:
                say(f"waiting for a node with room for a worker of {claim} ({passed:.0f} of {limit_s:g} s)")
                said = passed
            time.sleep(min(_POLL_S, limit_s - passed))
    finally:
        if asked:
            request_resources(bundles=[])


def no_room(claim: Claim, config: RayConfig, nodes: Sequence[Node], count: int = 1) -> str:
    """Explains why ``count`` workers do not fit: the setting, its value, the largest node and the fix."""
    able = trainers(nodes)
    if room := held(nodes, claim):
        return (
            f"ray.min_workers {count}: only {room} workers of {claim} each fit on the nodes that train; "
            "lower ray.min_workers"
        )
    if names := sorted({node.name for node in nodes if node not in able and claim.fits(node)}):
        return (
            f"no node that trains has room for a worker of {claim}; {', '.join(names)} has, but only "
            f"measures: start it with the label {ROLE}=both"
        )
    key = "cpus_per_worker" if any(node.fits(1, claim.gpus) for node in able) else "gpus_per_worker"
    largest = max(able, key=lambda node: (node.gpus, node.cpus) if claim.gpus else node.cpus, default=None)
    offer = "there is none"
    if largest:
        memory = 0 if largest.memory == math.inf else int(largest.memory)
        has = Claim(cpus=largest.cpus, gpus=largest.gpus, memory=memory)
        offer = f"the largest is {largest.name} with {has}"
    return (
        f"ray.{key} {getattr(config, key)}: no node that trains has room for a worker of {claim} ({offer}); "
        f"lower ray.{key}, or set ray.label_wait_s if an autoscaler brings such a node"
    )


def placed(claim: Claim, config: Config) -> dict[str, Any]:
    """Returns keyword arguments of a task's ``options``: what it claims and where it may run."""
    rules = selector(cluster.nodes(gone=True), claim, node_labels(config))
    resources = {"num_cpus": claim.cpus, "num_gpus": claim.gpus, "memory": claim.memory}
    return resources | ({"label_selector": rules} if rules else {})


def threads(cpus: int) -> int:
    """Returns the threads of a worker that claims ``cpus``; fewer if this machine has fewer CPUs."""
    return min(cpus, cluster.usable_cpus())


def with_cpus(config: Config, cpus: int) -> Config:
    """Returns the configuration with ``ray.cpus_per_worker`` set."""
    return config.model_copy(update={"ray": config.ray.model_copy(update={"cpus_per_worker": cpus})})
