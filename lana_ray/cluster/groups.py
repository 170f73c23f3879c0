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
from ray._private.state import available_resources_per_node
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from lana_ray.cluster import connection as cluster
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


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Ray Train workers of one kind."""

    name: str
    workers: int | tuple[int, int]
    """Number of workers, or the bounds between which it follows the cluster."""
    cpus: int
    gpus: float = 0
    memory: int = 0
    """Bytes per worker."""
    parts: int | None = None
    """Number of parts of the shared work, which the number of workers divides; None allows any number."""

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def claim(self) -> Claim:
        """Resources that each worker claims on its node."""
        return Claim(cpus=self.cpus, gpus=self.gpus, memory=self.memory)

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
    available = available_resources_per_node()
    unused = []
    for node in nodes:
        left = {name: available.get(node.id, {}).get(name, 0.0) for name in node.resources}
        for name, amount in (claim.resources if claim else {}).items():
            left[name] = left.get(name, 0.0) + own.count(node.id) * amount
        unused.append(replace(node, resources=left))
    return unused


class _Policy(ElasticScalingPolicy):
    """Sizes a group by the nodes that may train, and reports its states to the board."""

    def __init__(self, scaling: ScalingConfig, placing: Placing) -> None:
        super().__init__(scaling)
        self._placing = placing
        self._state = ""
        self._own: list[str] = []
        self._short_since: float | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        self._placing.board.controlled.remote(self._name, ray.get_runtime_context().current_actor)
        # The first request to the autoscaler uses this selector.
        self.scaling_config.label_selector = self._selector()
        super().after_controller_start(train_run_context)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        state = current_state._state_type.state_name
        if state != self._state:
            self._state = state
            self._placing.board.state.remote(self._name, state)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        if not self._own:
            self._own = [worker.metadata.node_id for worker in worker_group_state.workers]
            self._placing.board.placed.remote(
                self._name, worker_group_state.placement_group_handle.placement_group
            )
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        decision = super().make_decision_for_non_running_worker_group()
        # The controller would ask again immediately.
        if isinstance(decision, NoopDecision):
            time.sleep(self.GET_RESERVED_RESOURCES_INTERVAL_S)
        return decision

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str]:
        self._own = []  # the earlier workers have been shut down
        self._short_since = None
        return self._selector()

    def _maybe_send_resource_request(self) -> None:
        """Sends the request to the autoscaler with a selector: it must not bring nodes that only measure."""
        self.scaling_config.label_selector = self._selector()
        super()._maybe_send_resource_request()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """Returns how many workers fit; waits up to ``_SETTLE_S`` for resources that others still use."""
        nodes, group = cluster.nodes(gone=True), self._placing.group
        most = group.room(nodes, self._placing.ahead)
        now = min(most, group.room(free(nodes, self._own, group.claim), []))
        if now == most or self._state == RUNNING:
            return now
        if self._short_since is None:
            self._short_since = time.monotonic()
        return now if time.monotonic() - self._short_since > _SETTLE_S else 0

    @property
    def _name(self) -> str:
        return self._placing.group.name

    def _selector(self) -> dict[str, str]:
        return selector(cluster.nodes(gone=True), self._placing.group.claim, self._placing.targets)


class _ProgressPolicy(DefaultFailurePolicy):
    """Resets a group's count of failures whenever it has got further than before.

    Long work on many machines fails more often than any fixed number; work that is broken gets no further.
    """

    def __init__(self, config: FailureConfig, placing: Placing) -> None:
        super().__init__(config)
        self._placing = placing
        self._furthest = 0

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        furthest = ray.get(self._placing.board.furthest.remote(self._placing.group.name))
        if furthest > self._furthest:
            self._furthest = furthest
            self._worker_group_failures = 0
        return super().make_decision(training_failed_error)


class GroupTrainer(DataParallelTrainer):
    """Ray Train's trainer with this module's scaling and failure policies."""

    def __init__(self, placing: Placing, **options: Any) -> None:
        group = placing.group
        scaling = ScalingConfig(
            num_workers=(group.fewest, group.most),
            use_gpu=group.gpus > 0,
            resources_per_worker=group.claim.resources,
        )
        super().__init__(scaling_config=scaling, **options)
        self._placing = placing

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = _Policy(arguments["scaling_policy"].scaling_config, self._placing)
        failures = _ProgressPolicy(arguments["failure_policy"].failure_config, self._placing)
        own = {"scaling_policy": policy, "failure_policy": failures}
        return super()._initialize_and_run_controller(**{**arguments, **own})
