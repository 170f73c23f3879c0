"""Groups of Ray Train workers: how many start, where, and what Ray's controller reports to the driver.

Ray Train sizes an elastic group by the CPUs of all nodes, whatever their labels and whoever else uses them,
and then waits without a limit for an impossible placement. The policy here counts what is free on the nodes
that may train, and takes only sizes that divide the work. It runs in Ray Train's controller, which should
start fast: do not import PyTorch here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig

from lana_ray.cluster import connection as cluster
from lana_ray.cluster import ray_internals
from lana_ray.cluster.claims import Claim, held, occupied, selector, size
from lana_ray.cluster.connection import Node

RUNNING = "RUNNING"
"""State of Ray Train's controller, by Ray's name, while its workers run."""
FINISHED = "FINISHED"
"""State of the controller when its work is done."""
WAITING = ("INITIALIZING", "RESCHEDULING", "RESTARTING")
"""States of the controller while it waits for room."""
MAX_FAILURES = 3
"""How often in a row a group may fail without getting further than before."""
_SETTLE_S = 20.0
"""How long to wait for resources of tasks and workers that are about to end, before fewer workers start."""

_ElasticPolicy: Any = ray_internals.elastic_policy()
_FailurePolicy: Any = ray_internals.failure_policy()


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Ray Train workers of one kind; their number follows the cluster between ``fewest`` and ``most``."""

    name: str
    fewest: int = 1
    most: int = 1
    claim: Claim
    """Resources that each worker claims on its node."""
    parts: int | None = None
    """Number of parts of the work if the workers train one network together: their number divides it. None
    if they work independently; their number is then free."""

    def room(self, nodes: Sequence[Node], ahead: Sequence[WorkerGroup]) -> int:
        """Returns how many workers fit after the groups ``ahead`` are placed in full; 0 if too few fit."""
        for group in ahead:
            nodes = occupied(nodes, group.claim, group.most)
        count = size(min(self.most, held(nodes, self.claim)), self.parts)
        return count if count >= self.fewest else 0


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Everything that Ray's controller needs to place a group."""

    group: WorkerGroup
    ahead: tuple[WorkerGroup, ...]
    """Groups of the same training whose workers are placed first."""
    targets: list[str]
    """The values of ``lana.target`` that the run measures on."""
    board: Any
    """Handle of the ``Board``, to which the controller and its states are reported."""


def free(nodes: Sequence[Node], own: Sequence[str] = (), claim: Claim | None = None) -> list[Node]:
    """The nodes with their free resources; workers on the nodes ``own``, with ``claim``, count as free."""
    available = ray_internals.available_resources()
    unused = []
    for node in nodes:
        left = {name: available.get(node.id, {}).get(name, 0.0) for name in node.resources}
        for name, amount in (claim.resources if claim else {}).items():
            left[name] = left.get(name, 0.0) + own.count(node.id) * amount
        unused.append(replace(node, resources=left))
    return unused


class _Policy(_ElasticPolicy):
    """Sizes a group by the nodes that may train, and reports its states to the board."""

    def __init__(self, scaling: ScalingConfig, placing: Placing) -> None:
        super().__init__(scaling)
        self._group, self._board, self._placing = placing.group, placing.board, placing
        self._state = ""
        self._own: list[str] = []
        self._short_since: float | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        self._board.controlled.remote(self._group.name, ray.get_runtime_context().current_actor)
        super().after_controller_start(train_run_context)

    def enter(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._board.state.remote(self._group.name, state)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        if not self._own:
            self._own = [worker.metadata.node_id for worker in worker_group_state.workers]
            placed = worker_group_state.placement_group_handle.placement_group
            self._board.placed.remote(self._group.name, placed)
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def on_controller_start_worker_group(self, **start: Any) -> Any:
        self._own = []  # the earlier workers have been shut down
        self._short_since = None
        return super().on_controller_start_worker_group(**start)

    def count_workers(self) -> int:
        """Returns how many workers fit; waits up to ``_SETTLE_S`` for resources that others still use."""
        nodes = cluster.nodes(gone=True)
        most = self._group.room(nodes, self._placing.ahead)
        now = min(most, self._group.room(free(nodes, self._own, self._group.claim), []))
        if now == most or self._state == RUNNING:
            return now
        if self._short_since is None:
            self._short_since = time.monotonic()
        return now if time.monotonic() - self._short_since > _SETTLE_S else 0

    def selector(self) -> dict[str, str]:
        return selector(cluster.nodes(gone=True), self._group.claim, self._placing.targets)


class _ProgressPolicy(_FailurePolicy):
    """Resets a group's count of failures whenever it has got further than before.

    Long work on many machines fails more often than any fixed number; work that is broken gets no further.
    """

    def __init__(self, config: FailureConfig, placing: Placing) -> None:
        super().__init__(config)
        self._placing = placing
        self._furthest = 0

    def make_decision(self, training_failed_error: Any) -> Any:
        furthest = ray.get(self._placing.board.furthest.remote(self._placing.group.name))
        if furthest > self._furthest:
            self._furthest = furthest
            super().__init__(self.failure_config)  # counts from zero
        return super().make_decision(training_failed_error)


def group_trainer(placing: Placing, run: RunConfig, **options: Any) -> Any:
    """Returns Ray Train's trainer of a group, with this module's scaling and failure policies."""
    group = placing.group
    scaling = ScalingConfig(
        num_workers=(group.fewest, group.most),
        use_gpu=group.claim.gpus > 0,
        resources_per_worker=group.claim.resources,
    )
    policies = {
        "scaling_policy": _Policy(scaling, placing),
        "failure_policy": _ProgressPolicy(run.failure_config, placing),
    }
    return ray_internals.trainer_with(policies, scaling_config=scaling, run_config=run, **options)
