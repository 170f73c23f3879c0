"""Groups of Ray Train workers: how many start, where, and what Ray's controller tells the driver of them.

Ray Train sizes an elastic group by the CPUs of all nodes, whatever their labels and whoever else holds them,
and then waits without end for a placement that cannot be. The policy here counts what is free on the nodes
that may train, and takes only sizes that divide the work. It runs in Ray Train's controller, which should
start fast: no PyTorch here.
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
"""Name of the state of Ray Train's controller in which its workers work; the others likewise."""
FINISHED = "FINISHED"
"""That in which its work is done."""
WAITING = ("INITIALIZING", "RESCHEDULING", "RESTARTING")
"""Those in which it waits for room."""
MAX_FAILURES = 3
"""How often in a row a group may fail without getting further than it has ever been."""
_SETTLE_S = 20.0
"""How long to wait for what tasks and workers hold that are about to end, before fewer workers start."""


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Ray Train workers of one kind."""

    name: str
    workers: int | tuple[int, int]
    """How many, or the fewest and the most between which their number follows the cluster."""
    cpus: int
    gpus: float = 0
    memory: int = 0
    """Bytes of each."""
    parts: int | None = None
    """Of the work that all of them share: their number divides it. None if any number does."""

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def claim(self) -> Claim:
        """What each of them takes of its node."""
        return Claim(cpus=self.cpus, gpus=self.gpus, memory=self.memory)

    def room(self, known: Sequence[Node], ahead: Sequence[WorkerGroup]) -> int:
        """How many of them the nodes hold at most, next to full groups that come first; 0 for too few."""
        for group in ahead:
            known = occupied(known, group.claim, group.most)
        count = size(min(self.most, held(known, self.claim)), self.parts)
        return count if count >= self.fewest else 0


@dataclass(frozen=True, kw_only=True)
class Placing:
    """What Ray's controller must know to place a group."""

    group: WorkerGroup
    ahead: tuple[WorkerGroup, ...]
    """Groups of the same training whose workers have their places first."""
    targets: list[str]
    """The values of ``lana.target`` that the run measures on."""
    board: Any
    """A handle of the ``Board``, which learns of the controller and of its states."""


def free(known: Sequence[Node], own: Sequence[str] = (), claim: Claim | None = None) -> list[Node]:
    """The nodes with what nobody holds of them.

    Args:
        own: ids of the nodes of workers whose claims count as free, once for each worker.
        claim: that of each of these workers.
    """
    available = available_resources_per_node()
    nodes = []
    for node in known:
        left = {name: available.get(node.id, {}).get(name, 0.0) for name in node.resources}
        for name, amount in (claim.resources if claim else {}).items():
            left[name] = left.get(name, 0.0) + own.count(node.id) * amount
        nodes.append(replace(node, resources=left))
    return nodes


class _Policy(ElasticScalingPolicy):
    """Sizes a group by the nodes that may train, and tells the board what becomes of it."""

    def __init__(self, scaling: ScalingConfig, placing: Placing) -> None:
        super().__init__(scaling)
        self._placing = placing
        self._state = ""
        self._own: list[str] = []
        self._short_since: float | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        self._placing.board.controlled.remote(self._name, ray.get_runtime_context().current_actor)
        self.scaling_config.label_selector = self._selector()  # of the first request to the autoscaler
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
        if isinstance(decision, NoopDecision):  # the controller asks again at once
            time.sleep(self.GET_RESERVED_RESOURCES_INTERVAL_S)
        return decision

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str]:
        self._own = []  # the workers before have been shut down
        self._short_since = None
        return self._selector()

    def _maybe_send_resource_request(self) -> None:
        """To the autoscaler, which must not bring nodes for it that only measure."""
        self.scaling_config.label_selector = self._selector()
        super()._maybe_send_resource_request()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """As many as the nodes hold; of what others hold of them, it waits a little for the end."""
        known, group = cluster.nodes(gone=True), self._placing.group
        most = group.room(known, self._placing.ahead)
        now = min(most, group.room(free(known, self._own, group.claim), []))
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


class _Patience(DefaultFailurePolicy):
    """Forgets earlier failures of a group once it has got further than before them.

    Long work on many machines fails more often than any fixed number; what fails for good gets no further.
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
    """Ray Train, sizing a group and forgiving its failures as this module does."""

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
        patience = _Patience(arguments["failure_policy"].failure_config, self._placing)
        own = {"scaling_policy": policy, "failure_policy": patience}
        return super()._initialize_and_run_controller(**{**arguments, **own})
