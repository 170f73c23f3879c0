"""Assigns nodes to targets, and decides what a sampler claims on them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.autoscaler.sdk import request_resources

from lana_ray.cluster import connection as cluster
from lana_ray.cluster.connection import DEVICE, LABEL, ROLE, Node
from lana_ray.config import Target
from lana_ray.errors import UserError

_POLL_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a target's sampler actors run and what each of them claims."""

    nodes: tuple[str, ...]
    """Names of the nodes that serve the target."""
    actors: int
    """How many samplers fit on these nodes at a time."""
    label_selector: dict[str, str] | None
    resources: dict[str, float]
    num_cpus: int
    num_gpus: int
    stand_in: bool
    """Whether the only machine of an unlabelled cluster stands in for the target."""
    devices: int = 1
    """The least number of measurements that may run at a time on one of these nodes."""

    @property
    def alone(self) -> Placement:
        """The same for what must not run beside a measurement."""
        return replace(self, resources={DEVICE: float(self.devices)} if self.resources else {})

    @property
    def claim(self) -> dict[str, float]:
        """What a sampler claims on its node, by resource name."""
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {}), **self.resources}

    def options(self) -> dict[str, Any]:
        """Returns keyword arguments of an actor's ``options``."""
        selector = {"label_selector": self.label_selector} if self.label_selector else {}
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources),
            "scheduling_strategy": "DEFAULT",  # not inside the placement group of a Ray Tune trial
            **selector,
        }


def assign_targets(
    targets: Sequence[Target],
    nodes: Sequence[Node],
    *,
    wait_s: float = 0.0,
    on_wait: Callable[[str], None] = _log.warning,
) -> dict[str, Placement]:
    """Returns the placement of each target by the target's name; waits for missing nodes.

    Ray itself would wait silently for nodes that do not exist. If the cluster is a single machine without a
    label ``lana.target``, it stands in for every target.

    Args:
        nodes: the nodes of the cluster, from ``connection.nodes`` or ``this_machine``.
        wait_s: how long to wait for an autoscaler to bring missing nodes, in seconds.
        on_wait: called every other second with a line that names the missing nodes.

    Raises:
        UserError: no node serves a target; names the target and what the nodes offer.
    """
    start = time.monotonic()
    asked = False
    try:
        while True:
            stand_in = _stands_in(nodes, wait_s)
            absent = [] if stand_in else [t for t in targets if not _carriers(t, nodes)]
            if not absent:
                return {t.name: _place(t, nodes if stand_in else _carriers(t, nodes)) for t in targets}
            passed = time.monotonic() - start
            if passed >= wait_s:
                raise UserError("no_node", nobody(absent[0], nodes))
            if not asked:
                ask_autoscaler(absent)
                asked = True
            waiting = ", ".join(f"{LABEL}={target.node_label}" for target in absent)
            on_wait(f"waiting for a node with label {waiting} ({passed:.0f} of {wait_s:g} s)")
            time.sleep(min(_POLL_S, wait_s - passed))
            nodes = cluster.nodes()
    finally:
        if asked:
            ask_autoscaler([])


def _stands_in(nodes: Sequence[Node], wait_s: float) -> bool:
    """Whether the only machine there is can stand in for every target.

    A node with the role ``train`` cannot, nor can a head node without a device while more nodes may come.
    """
    if len(nodes) != 1 or nodes[0].target or nodes[0].labels.get(ROLE) == "train":
        return False
    return nodes[0].devices > 0 or wait_s == 0


def _carriers(target: Target, nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.target == target.node_label]


def _gpus(target: Target) -> int:
    """Returns the number of GPUs that an actor must own so that it has the target's device."""
    kind, _, index = target.device.partition(":")
    return int(index or 0) + 1 if kind == "cuda" else 0


def _place(target: Target, serving: Sequence[Node]) -> Placement:
    gpus = _gpus(target)
    names = ", ".join(sorted({node.name for node in serving}))
    stand_in = serving[0].target is None
    claims_device = not stand_in or serving[0].devices > 0
    fits = {node.id: node.fits(target.threads, gpus) for node in serving}
    if not any(node.cpus >= target.threads for node in serving):
        most = max(node.cpus for node in serving)
        raise UserError(
            "no_node", f"target {target.name!r}: threads {target.threads}, but {names} has only {most} CPUs"
        )
    if not any(fits.values()):
        raise UserError(
            "no_node", f"target {target.name!r}: device {target.device}, but {names} has no such GPU"
        )
    if claims_device:
        fits = {node.id: min(fits[node.id], node.devices) for node in serving}
        if not any(fits.values()):
            raise UserError(
                "no_node",
                f"target {target.name!r}: {names} offers no {DEVICE}; "
                f"start it with ray start --resources='{{\"{DEVICE}\": 1}}'",
            )
    return Placement(
        nodes=tuple(node.name for node in serving if fits[node.id]),
        actors=sum(fits.values()) if claims_device else 1,
        label_selector=None if stand_in else {LABEL: target.node_label},
        resources={DEVICE: 1.0} if claims_device else {},
        num_cpus=target.threads,
        num_gpus=gpus,
        stand_in=stand_in,
        devices=max(1, min(node.devices for node in serving if fits[node.id])),
    )


def nobody(target: Target, nodes: Sequence[Node]) -> str:
    """Returns the error message for a target that no node serves."""
    offers = ", ".join(sorted({node.target for node in nodes if node.target})) or "none"
    return f"target {target.name!r}: no node carries label {LABEL}={target.node_label}; nodes offer: {offers}"


def ask_autoscaler(absent: Sequence[Target]) -> None:
    """Asks an autoscaler for a node for each of these targets; an empty list withdraws earlier requests."""
    request_resources(
        bundles=[{"CPU": target.threads, DEVICE: 1, **_gpu_claim(target)} for target in absent],
        bundle_label_selectors=[{LABEL: target.node_label} for target in absent],
    )


def _gpu_claim(target: Target) -> dict[str, int]:
    return {"GPU": _gpus(target)} if _gpus(target) else {}
