"""The private names of Ray that this package uses, each in one function that says why and which tests notice.

They are those of Ray 2.60, which ``pyproject.toml`` pins because of them. Those of Ray Train are imported
only where they are used: they take a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import ray_constants, services, state
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]


def reread_authentication() -> None:
    """Makes Ray read its environment variables and token again, which it read when it was imported.

    Private: ``ray._raylet.Config`` and ``AuthenticationTokenLoader``. Ray has no public way to change the
    token of a running process. Noticed by ``tests/cluster/test_authentication.py``.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def started_cluster() -> str | None:
    """Returns the address of the cluster that ``ray start`` last started on this machine; None without one.

    Private: ``ray._private.services.find_bootstrap_address``. ``ray.init(address="auto")`` waits for minutes
    if that cluster is dead, and joins another process's local cluster if there is none. Noticed by
    ``tests/cluster/test_connection.py``.
    """
    address: str | None = services.find_bootstrap_address(None)
    return address


@contextmanager
def on_loopback(enabled: bool) -> Iterator[None]:
    """Makes Ray use only loopback here and in a cluster it starts, as it does on macOS by default.

    Private: ``ray._private.ray_constants.ENABLE_RAY_CLUSTER``. Ray reads its environment variable only when
    it is imported, and takes ``_node_ip_address="127.0.0.1"`` for this machine's address in the network.
    Noticed by ``tests/test_processes.py``.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not enabled
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def folder_option(folder: str) -> dict[str, str]:
    """Returns the argument of ``ray.init`` for the folder of a local cluster's sockets and logs.

    Private: ``_temp_dir``. The public ``RAY_TMPDIR`` would change the environment of every process that this
    one starts. Noticed by ``tests/test_processes.py``.
    """
    return {"_temp_dir": folder}


def available_resources() -> dict[str, dict[str, float]]:
    """Returns the resources that each living node has free, by the node's id.

    Private: ``ray._private.state.available_resources_per_node``. ``ray.available_resources`` gives only the
    sum of all nodes. Noticed by ``tests/cluster/test_trainers.py``.
    """
    available: dict[str, dict[str, float]] = state.available_resources_per_node()
    return available


def elastic_policy() -> Any:
    """Returns the base class of a policy that sizes a group of Ray Train workers.

    It has the hooks of Ray Train's controller. Subclasses define ``count_workers()``, the number of workers
    that fit now, ``selector()``, the nodes they may run on, and ``enter(state)``, which gets Ray Train's name
    of the controller's state.

    Private: ``ElasticScalingPolicy``, its ``_count_possible_workers``, ``NoopDecision`` and ``_state_type``
    of the controller's states. Ray Train counts all nodes, and no public argument tells it to leave some out.
    Noticed by ``tests/cluster/test_trainers.py`` and ``test_roles.py``.
    """
    from ray.train.v2._internal.execution import scaling_policy

    class Elastic(scaling_policy.ElasticScalingPolicy):
        # Every request to the autoscaler uses the selector: it must not bring nodes that only measure.
        def after_controller_start(self, train_run_context: Any) -> None:
            self.scaling_config.label_selector = self.selector()
            super().after_controller_start(train_run_context)

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            self.enter(current_state._state_type.state_name)

        def make_decision_for_running_worker_group(self, *group: Any, **named: Any) -> Any:
            self.scaling_config.label_selector = self.selector()
            return super().make_decision_for_running_worker_group(*group, **named)

        def make_decision_for_non_running_worker_group(self) -> Any:
            self.scaling_config.label_selector = self.selector()
            decision = super().make_decision_for_non_running_worker_group()
            # The controller would ask again immediately.
            if isinstance(decision, scaling_policy.NoopDecision):
                time.sleep(self.GET_RESERVED_RESOURCES_INTERVAL_S)
            return decision

        def on_controller_start_worker_group(self, **_: Any) -> Any:
            return self.selector()

        def _count_possible_workers(self, reserved_resources: Any) -> Any:
            return self.count_workers()

    return Elastic


def failure_policy() -> Any:
    """Returns the class that decides whether a failed group of Ray Train workers starts again.

    Private: ``DefaultFailurePolicy``. Ray Train has no public way to count failures since the last progress.
    Noticed by ``tests/cluster/test_trainers.py`` (slow).
    """
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

    return DefaultFailurePolicy


def trainer_with(policies: dict[str, Any], **options: Any) -> Any:
    """Returns Ray Train's ``DataParallelTrainer`` with a ``scaling_policy`` and a ``failure_policy`` of ours.

    Private: ``DataParallelTrainer._initialize_and_run_controller``. No public argument takes a policy.
    Noticed by ``tests/cluster/test_trainers.py`` and ``test_roles.py``.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):
        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            return super()._initialize_and_run_controller(**arguments | policies)

    return Trainer(**options)
