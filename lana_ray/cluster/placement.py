"""Who serves which target: the nodes of every target, and what a sampler on them claims."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """How many samplers fit on them at a time."""
    label_selector: dict[str, str] | None
    resources: dict[str, float]
    num_cpus: int
    num_gpus: int
    stand_in: bool
    """No node is labelled: the only machine there is stands in for the target."""

    @property
    def claim(self) -> dict[str, float]:
        """What a sampler takes of its node, by the name of the resource."""
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {}), **self.resources}

    def options(self) -> dict[str, Any]:
        """Keyword arguments of an actor's ``options``."""
        selector = {"label_selector": self.label_selector} if self.label_selector else {}
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources),
            "scheduling_strategy": "DEFAULT",  # and not what holds a trial of Ray Tune that asks for it
            **selector,
        }


def assign_targets(
    targets: Sequence[Target],
    known: Sequence[Node],
    *,
    wait_s: float = 0.0,
    on_wait: Callable[[str], None] = _log.warning,
) -> dict[str, Placement]:
    """Finds the nodes of every target, before Ray is asked for them: it would wait without a word.

    Where a single machine carries no ``lana.target`` at all, it stands in for every target.

    Args:
        known: the nodes of the cluster, from ``nodes`` or ``this_machine``.
        wait_s: how long to wait, in seconds, for an autoscaler to bring missing nodes; it is asked to.
        on_wait: told every other second who is waited for.

    Returns:
        The placement of each target by the target's name.

    Raises:
        UserError: naming the target and what the nodes offer, when nobody serves it.
    """
    start = time.monotonic()
    asked = False
    try:
        while True:
            stand_in = _stands_in(known, wait_s)
            absent = [] if stand_in else [t for t in targets if not _carriers(t, known)]
            if not absent:
                return {t.name: _place(t, known if stand_in else _carriers(t, known)) for t in targets}
            passed = time.monotonic() - start
            if passed >= wait_s:
                raise UserError(nobody(absent[0], known))
            if not asked:
                ask_autoscaler(absent)
                asked = True
            waiting = ", ".join(f"{LABEL}={target.node_label}" for target in absent)
            on_wait(f"waiting for a node with label {waiting} ({passed:.0f} of {wait_s:g} s)")
            time.sleep(min(_POLL_S, wait_s - passed))
            known = cluster.nodes()
    finally:
        if asked:
            ask_autoscaler([])


def _stands_in(known: Sequence[Node], wait_s: float) -> bool:
    """A node that says it trains only is no stand-in; nor a head without a device, while more is to come."""
    if len(known) != 1 or known[0].target or known[0].labels.get(ROLE) == "train":
        return False
    return known[0].devices > 0 or wait_s == 0


def _carriers(target: Target, known: Sequence[Node]) -> list[Node]:
    return [node for node in known if node.target == target.node_label]


def _gpus(target: Target) -> int:
    """GPUs an actor must own so that the target's device exists for it."""
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
        raise UserError(f"target {target.name!r}: threads {target.threads}, but {names} has {most} CPUs")
    if not any(fits.values()):
        raise UserError(f"target {target.name!r}: device {target.device}, but {names} has no such GPU")
    if claims_device:
        fits = {node.id: min(fits[node.id], node.devices) for node in serving}
        if not any(fits.values()):
            raise UserError(
                f"target {target.name!r}: {names} offers no {DEVICE}; "
                f"start it with ray start --resources='{{\"{DEVICE}\": 1}}'"
            )
    return Placement(
        nodes=tuple(node.name for node in serving if fits[node.id]),
        actors=sum(fits.values()) if claims_device else 1,
        label_selector=None if stand_in else {LABEL: target.node_label},
        resources={DEVICE: 1.0} if claims_device else {},
        num_cpus=target.threads,
        num_gpus=gpus,
        stand_in=stand_in,
    )


def nobody(target: Target, known: Sequence[Node]) -> str:
    """That no node serves a target, as the line of an error."""
    offers = ", ".join(sorted({node.target for node in known if node.target})) or "none"
    return f"target {target.name!r}: no node carries label {LABEL}={target.node_label}; nodes offer: {offers}"


def ask_autoscaler(absent: Sequence[Target]) -> None:
    """Has an autoscaler bring a node for each of these targets; without any, it need bring no more."""
    request_resources(
        bundles=[{"CPU": target.threads, DEVICE: 1, **_gpu_claim(target)} for target in absent],
        bundle_label_selectors=[{LABEL: target.node_label} for target in absent],
    )


def _gpu_claim(target: Target) -> dict[str, int]:
    return {"GPU": _gpus(target)} if _gpus(target) else {}
