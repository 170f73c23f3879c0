"""Runs a Ray Train job from the driver and shows its progress."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import ray
import torch
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, RunConfig, WorkerGroupError
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.util import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lana_ray.cluster.agreement import of_driver
from lana_ray.cluster.claims import (
    Ask,
    await_room,
    held,
    no_room,
    node_labels,
    share,
    size,
    trainers,
    with_cpus,
)
from lana_ray.cluster.connection import TRAINING_ENV, Node, is_on_loopback, nodes
from lana_ray.cluster.groups import FINISHED, MAX_FAILURES, WAITING, Placing, WorkerGroup, free, group_trainer
from lana_ray.cluster.launch import Board, in_background, run_worker
from lana_ray.config import Config, RayConfig, TrainConfig
from lana_ray.errors import Code, UserError, is_fault, one_line
from lana_ray.monitoring.progress import progress, say
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage
from lana_ray.training.micro import micro_batches

_POLL_S = 0.5
_SAY_S = 60.0
"""Time without any worker after which the reason is reported, and between two such reports."""
_END_S = 1800.0
"""Time without any worker after which the training ends; ``ray.label_wait_s`` if that is longer."""
_ABORT_S = 60.0
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_POLL_S),  # how soon the end is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process: our workers save their state anyway
}
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the workers of a Ray Train job do; they save finished work to the run directory themselves."""

    title: str
    worker: Callable[[dict[str, Any]], None]
    """Runs on every worker."""
    setting: Mapping[str, Any]
    """The worker's argument; ``config``, ``board`` and ``group`` (its name and its GPUs) are added."""
    groups: Sequence[WorkerGroup]
    """Each gets its own trainer."""
    total: int
    """Number of steps, for the progress shown."""
    rounds: Iterable[Any] = ()
    """Work that the workers take from the board."""

    def fit(self, group: WorkerGroup, config: Config, board: Any) -> None:
        """Trains one group until it ends; raises the errors of Ray Train."""
        own = {"config": with_cpus(config, group.claim.cpus), "group": (group.name, group.claim.gpus)}
        call = pickle.dumps((self.worker, {**self.setting, **own}, of_driver(config.run.dir)))
        ahead = tuple(itertools.takewhile(lambda other: other is not group, self.groups))
        # Ray Train silently resumes an earlier run of the same name, so the name includes what is trained.
        trained = fingerprint(config, [repr(self.setting[key]) for key in sorted(self.setting)])
        run = RunConfig(
            name=f"{self.title}-{group.name}-{trained}",
            storage_path=f"{config.run.dir}/ray",
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env=TRAINING_ENV,
        )
        group_trainer(
            Placing(group=group, ahead=ahead, targets=node_labels(config), board=board),
            run,
            train_loop_per_worker=run_worker,
            train_loop_config={"call": call, "board": board},
            backend_config=_backend(group),
        ).fit()


def _backend(group: WorkerGroup) -> BackendConfig:
    """Returns the process group of workers that train one network, over loopback on a local cluster."""
    if group.parts is None:
        return BackendConfig()
    kind = _LoopbackConfig if is_on_loopback() else TorchConfig
    return kind(backend="nccl" if group.claim.gpus else "gloo")


@dataclass
class _LoopbackConfig(TorchConfig):
    @property
    def backend_cls(self) -> Any:
        return _LoopbackBackend


_TorchBackend: Any = TorchConfig().backend_cls


class _LoopbackBackend(_TorchBackend):
    """Connects processes of one machine through a file: torch's TCP store listens on every interface."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        group = {
            "backend": backend_config.backend,
            "world_size": len(worker_group),
            "init_method": f"file://{tempfile.gettempdir()}/lana_ray-{uuid.uuid4().hex}",
            "timeout": timedelta(seconds=backend_config.timeout_s),
        }
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, world_rank=rank, **group)
                for rank in range(len(worker_group))
            ]
        )


def _join(world_rank: int, **group: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _LOOPBACK
    torch.distributed.init_process_group(rank=world_rank, **group)


def worker_group(
    config: RayConfig, training: TrainConfig, cluster: Sequence[Node] | None = None
) -> WorkerGroup:
    """Returns the workers that train one network together: at most one per micro-batch of its batch.

    Args:
        cluster: the nodes; those of the connected cluster by default.
    """
    parts = micro_batches(training.batch_size, training.micro_batch_size)
    ask = Ask(
        most=config.workers or parts, gpus=config.gpus_per_worker, cpus=config.cpus_per_worker, parts=parts
    )
    return elastic("worker", ask, config, nodes(gone=True) if cluster is None else cluster)


def elastic(name: str, ask: Ask, config: RayConfig, cluster: Sequence[Node]) -> WorkerGroup:
    """Returns a group as large as the nodes allow; its size follows the cluster from ``ray.min_workers`` up.

    A fixed size would wait forever for a node that never comes back. With ``ray.workers``, the group may grow
    beyond the present nodes when an autoscaler brings more.
    """
    count, claim = share(ask, cluster)
    most = size(ask.most, ask.parts) if config.workers else max(count, 1)
    sizes = (n for n in range(config.min_workers, most + 1) if size(n, ask.parts) == n)
    return WorkerGroup(name=name, fewest=next(sizes, most), most=most, claim=claim, parts=ask.parts)


def describe(group: WorkerGroup, config: RayConfig) -> str:
    """Returns a line for people: how many workers a group has and what each claims."""
    fewest, most = group.fewest, group.most
    count = f"{most} {group.name}{'s' * (most != 1)}"
    if fewest < most:
        count = f"{fewest} to {count}" if fewest > 1 else f"up to {count}"
    workers = config.workers if group.claim.gpus or group.parts or not config.gpus_per_worker else None
    fewer = f"; ray.workers {workers} is more than the work has parts" if workers and workers > most else ""
    return f"{count} of {group.claim}{fewer}"


def run_training(training: Training, config: Config) -> None:
    """Runs a training's worker on every Ray Train worker and shows how many steps are done.

    A group restarts if one of its workers dies, as long as it gets further than before (``MAX_FAILURES``).
    The first group that fails ends the others.

    Raises:
        UserError: a mistake of the user that only a worker could detect; no node has room for a worker;
            workers keep dying.
    """
    title = training.title
    for group in training.groups:
        await_room(group.claim, config, count=group.fewest)
        say(f"{title}: {describe(group, config.ray)}")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(training.rounds)
    fits = _start(training, config, board)
    watch = _Watch(title, training.groups, config)
    try:
        with progress(title, training.total) as show:
            while not all(fit.done() for fit in fits) and _failure(fits) is None:
                time.sleep(_POLL_S)
                (done, lost), (states, mistake) = ray.get([board.news.remote(), board.groups.remote()])
                show(min(training.total, done))
                for name in lost:
                    say(f"{title}: {name} died; its work since the last save is repeated")
                if mistake is not None:
                    raise mistake
                if not watch.look(states):
                    break
        # Ending the other groups adds failures of its own.
        failed = _failure(fits)
    finally:
        _end(board, fits)
    if failed is not None:
        _fail(title, failed, config)


def _start(training: Training, config: Config, board: Any) -> list[Future[Any]]:
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    for variable, value in _RAY_TRAIN.items():
        os.environ.setdefault(variable, value)
    return [in_background(training.fit, group, config, board) for group in training.groups]


def _failure(fits: Sequence[Future[Any]]) -> BaseException | None:
    return next((fit.exception() for fit in fits if fit.done() and fit.exception()), None)


def _end(board: Any, fits: Sequence[Future[Any]]) -> None:
    """Ends the remaining groups, their placement groups and the board."""
    if not all(fit.done() for fit in fits):
        (states, _), (controllers, places) = ray.get([board.groups.remote(), board.held.remote()])
        # A controller that waits for room does not answer; one that starts workers answers afterwards.
        aborts = [c.abort.remote() for name, c in controllers.items() if states.get(name) not in WAITING]
        if aborts:
            ray.wait(aborts, num_returns=len(aborts), timeout=_ABORT_S)
        for controller in controllers.values():
            ray.kill(controller)
        for placed in places:
            remove_placement_group(placed)
        wait(fits, _ABORT_S)
    ray.kill(board)


class _Watch:
    """Reports why a group has no workers, and ends a training that waits for workers too long."""

    def __init__(self, title: str, groups: Sequence[WorkerGroup], config: Config) -> None:
        self._title, self._groups, self._config = title, groups, config
        now = time.monotonic()
        self._ran = {group.name: now for group in groups}
        self._said = dict(self._ran)

    def look(self, states: Mapping[str, str]) -> bool:
        """Updates the states of the groups' controllers; returns whether the training goes on.

        It ends if some groups have finished and all others wait: the caller then starts the remaining work
        again.

        Raises:
            UserError: no group has had workers for too long.
        """
        now = time.monotonic()
        waiting = [group for group in self._groups if states.get(group.name, WAITING[0]) in WAITING]
        busy = {group.name for group in self._groups} - {group.name for group in waiting}
        for name in busy:
            self._ran[name] = self._said[name] = now
        for group in waiting:
            if now - self._said[group.name] < _SAY_S or (missing := self._missing(group)) is None:
                continue
            self._said[group.name] = now
            code, reason = missing
            line = f"{self._title}: no {group.name} for {now - self._ran[group.name]:.0f} s: {reason}"
            if now - max(self._ran.values()) >= max(_END_S, self._config.ray.label_wait_s):
                raise UserError(code, line)
            say(line)
        finished = any(state == FINISHED for state in states.values())
        return not (finished and all(states[name] == FINISHED for name in busy))

    def _missing(self, group: WorkerGroup) -> tuple[Code, str] | None:
        """Returns the code and the reason why no worker of a group starts; None if some soon will."""
        cluster = nodes(gone=True)
        if held(cluster, group.claim) < group.fewest:
            return "no_node", no_room(group.claim, self._config.ray, cluster, group.fewest)
        if group.room(free(cluster), []):
            return None
        spare = trainers(free(cluster))
        cpus, gpus = sum(node.cpus for node in spare), sum(node.gpus for node in spare)
        return "busy", (
            f"no node that trains has {group.claim} free for a worker, because others use them "
            f"({cpus} CPUs and {gpus} GPUs are free in total)"
        )


def _fail(title: str, error: BaseException, config: Config) -> NoReturn:
    """Raises the user's mistake if there is one, a one-line UserError for faults of machines, else ``error``.

    Ray reports a worker that died by an error of its own, and other workers by what they raised.
    """
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    causes = [cause.cause if isinstance(cause, RayTaskError) else cause for cause in (error, *failures)]
    if (mistake := next((cause for cause in causes if isinstance(cause, UserError)), None)) is not None:
        raise mistake
    # Ray Train writes to the run directory too, and explains less if it cannot.
    Storage(config.run.dir).check_writable()
    if failures and all(type(cause).__module__.startswith("ray.") or is_fault(cause) for cause in causes[1:]):
        raise UserError(
            "failed",
            f"{title}: a worker died {MAX_FAILURES + 1} times without getting further than before "
            f"({one_line(causes[1])}); fix this and rerun the same command; finished work is kept",
        ) from None
    raise error
