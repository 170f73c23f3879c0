"""Which nodes train, how many workers they hold, and what each worker claims of its node.

Training, distillation, scores and evaluations run on nodes whose role is ``train`` or ``both``. Only where no
other node has a CPU do they run on those that measure.
"""

from __future__ import annotations

import math
import os
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
"""Exponent of the speed-up by threads, against 1 for workers: rather two workers than two threads of one."""
_POLL_S = 2.0
_SAY_EVERY_S = 30.0
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
"""What Ray takes as a label's value; no node can carry another."""
NODE_ID = "ray.io/node-id"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What one worker takes of its node."""

    cpus: int
    gpus: float = 0
    memory: int = 0
    """Bytes."""

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        named = {"CPU": float(self.cpus), "GPU": float(self.gpus), "memory": float(self.memory)}
        return {name: amount for name, amount in named.items() if amount}

    def fits(self, node: Node) -> int:
        """How many such workers a node holds."""
        count = node.fits(self.cpus, self.gpus)
        return int(min(count, node.memory / self.memory)) if self.memory else count

    def __str__(self) -> str:
        parts = [f"{self.cpus} CPU{'s' * (self.cpus != 1)}"]
        if self.gpus:
            parts.append(f"{self.gpus:g} GPU{'s' * (self.gpus != 1)}")
        if self.memory:
            parts.append(f"{self.memory / GIB:.1f} GiB")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What is wanted of the nodes: as many workers as they hold, up to a bound."""

    most: int
    memory: int = PROCESS_BYTES
    """Bytes that each takes."""
    gpus: float = 0
    cpus: int | None = None
    """Of each; None shares all CPUs of a node among its workers."""
    parts: int | None = None
    """Of the work that the workers share: their number must divide it. None if any number does."""


def size(most: int, parts: int | None) -> int:
    """The largest number of workers up to ``most`` that divides the parts of their work; 0 if none does."""
    if parts is None:
        return most
    return max((n for n in range(1, most + 1) if parts % n == 0), default=0)


def trainers(known: Iterable[Node]) -> list[Node]:
    """The living nodes that may train; those that measure only if there has never been another.

    Args:
        known: all nodes, those that have left too.
    """
    able = [node for node in known if node.cpus or not node.alive]
    return [node for node in [n for n in able if n.role != "measure"] or able if node.alive]


def held(known: Iterable[Node], claim: Claim) -> int:
    """How many workers fit on the nodes that may train."""
    return sum(claim.fits(node) for node in trainers(known))


def share(ask: Ask, known: Sequence[Node]) -> tuple[int, Claim]:
    """How many workers to start on nodes, and what each claims.

    Workers fill the nodes: no more than ``ask`` bounds, each with as many CPUs as its node has left for it.
    With GPUs, all of them are used first. If no node holds the memory of one worker, it claims what the
    largest has.

    Returns:
        The number of workers and the claim of each. 0 if no node holds one, with the smallest claim.
    """
    able = trainers(known)
    having = [node for node in able if node.fits(ask.cpus or 1, ask.gpus)]
    memory = int(min(ask.memory, max((node.memory for node in having), default=ask.memory)))
    widths = [ask.cpus] if ask.cpus else range(1, max((node.cpus for node in having), default=1) + 1)
    # An autoscaler may not know how much memory its nodes have, and would bring none for a claim on it.
    best, choice = 0.0, (0, Claim(cpus=ask.cpus or 1, gpus=ask.gpus))
    for cpus in widths:
        claim = Claim(cpus=cpus, gpus=ask.gpus, memory=memory)
        count = size(min(ask.most, sum(claim.fits(node) for node in having)), ask.parts)
        speed = count * (1.0 if ask.gpus else cpus**_THREADS_GAIN)
        if count and speed >= best - 1e-9:
            best, choice = speed, (count, claim)
    return choice


def occupied(known: Sequence[Node], claim: Claim, count: int) -> list[Node]:
    """The nodes with what is left of them once ``count`` workers have filled one after another."""
    able, left = trainers(known), []
    for node in known:
        here = min(count, claim.fits(node)) if node in able else 0
        count -= here
        taken = {name: here * amount for name, amount in claim.resources.items()}
        free = {name: amount - taken.get(name, 0) for name, amount in node.resources.items()}
        left.append(replace(node, resources=free))
    return left


def selector(known: Sequence[Node], claim: Claim, targets: Iterable[str]) -> dict[str, str]:
    """Ray's label selector for what trains; empty if nodes that measure must train.

    It names what is kept out, since Ray cannot ask for nodes that lack a label: nodes that say they measure,
    and the targets of those that do by default. The run's targets that no node has carried yet are kept out
    too, as long as other nodes hold a worker; else an autoscaler may bring a node of a target that trains.

    Args:
        known: all nodes, those that have left too: a target's nodes may come back.
        targets: the values of ``lana.target`` that the run measures on.
    """
    able = trainers(known)
    if any(node.role == "measure" for node in able):
        return {}
    measuring = [node for node in known if node.role == "measure" and node.target]
    kept_out = {node.target for node in measuring}
    if held(known, claim):
        kept_out |= {label for label in targets if _LABEL.fullmatch(label)}
    both = {node.target for node in known if node.role != "measure"}
    rules = {
        ROLE: ["measure"],
        LABEL: sorted(label for label in kept_out - both if label),
        NODE_ID: [node.id for node in measuring if node.alive and node.target in both],
    }
    return {key: f"!in({', '.join(values)})" for key, values in rules.items() if values}


def node_labels(config: Config) -> list[str]:
    """The values of ``lana.target`` that a run measures on."""
    return [target.node_label for target in config.targets]


def await_room(claim: Claim, config: Config, *, count: int = 1, wait_s: float | None = None) -> None:
    """Returns once the nodes that train hold ``count`` workers; asks an autoscaler for what is missing.

    Ray would wait without a word and without an end.

    Args:
        wait_s: how long to wait, in seconds; ``ray.label_wait_s`` by default.

    Raises:
        UserError: when nothing came: what a worker needs, and what the largest node has.
    """
    limit_s = config.ray.label_wait_s if wait_s is None else wait_s
    start, said = time.monotonic(), -_SAY_EVERY_S
    asked = False
    try:
        while held(known := cluster.nodes(gone=True), claim) < count:
            passed = time.monotonic() - start
            if passed >= limit_s:
                raise UserError(no_room(claim, config.ray, known, count))
            if not asked:
                rules = selector(known, claim, node_labels(config))
                request_resources(bundles=count * [claim.resources], bundle_label_selectors=count * [rules])
                asked = True
            if passed - said >= _SAY_EVERY_S:
                say(f"waiting for a node that holds a worker of {claim} ({passed:.0f} of {limit_s:g} s)")
                said = passed
            time.sleep(min(_POLL_S, limit_s - passed))
    finally:
        if asked:
            request_resources(bundles=[])


def no_room(claim: Claim, config: RayConfig, known: Sequence[Node], count: int = 1) -> str:
    """Why nodes do not hold ``count`` workers: the setting, what it asks, the largest node and the fix."""
    able = trainers(known)
    if room := held(known, claim):
        return f"ray.min_workers {count}: the nodes that train hold {room} workers of {claim} each; lower it"
    if names := sorted({node.name for node in known if node not in able and claim.fits(node)}):
        return (
            f"no node that trains holds a worker of {claim}; {', '.join(names)} would but only measures: "
            f"start it with the label {ROLE}=both"
        )
    key = "cpus_per_worker" if any(node.fits(1, claim.gpus) for node in able) else "gpus_per_worker"
    largest = max(able, key=lambda node: (node.gpus, node.cpus) if claim.gpus else node.cpus, default=None)
    offer = f"the largest is {largest.name} with {_offer(largest)}" if largest else "there is none"
    return (
        f"ray.{key} {getattr(config, key)}: no node that trains holds a worker of {claim} ({offer}); "
        f"lower {key}, or set ray.label_wait_s if an autoscaler brings such a node"
    )


def _offer(node: Node) -> str:
    return str(
        Claim(cpus=node.cpus, gpus=node.gpus, memory=0 if node.memory == math.inf else int(node.memory))
    )


def placed(claim: Claim, config: Config) -> dict[str, Any]:
    """Keyword arguments of a task's ``options``: what it claims and where it may run."""
    rules = selector(cluster.nodes(gone=True), claim, node_labels(config))
    return {
        "num_cpus": claim.cpus,
        "num_gpus": claim.gpus,
        "memory": claim.memory,
        **({"label_selector": rules} if rules else {}),
    }


def threads(cpus: int) -> int:
    """Threads of a worker that claims ``cpus``, in its process: fewer if this machine has fewer."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, here)


def with_cpus(config: Config, cpus: int) -> Config:
    """The configuration with ``ray.cpus_per_worker`` decided."""
    return config.model_copy(update={"ray": config.ray.model_copy(update={"cpus_per_worker": cpus})})
