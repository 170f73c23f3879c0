"""Runs a Ray Train job from the driver, with its progress."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import ray
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, RunConfig, WorkerGroupError
from ray.train.backend import BackendConfig
from ray.util import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lana_ray.cluster.agreement import Agreement, of_driver
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
from lana_ray.cluster.connection import TRAINING_ENV, Node, nodes
from lana_ray.cluster.groups import FINISHED, MAX_FAILURES, WAITING, GroupTrainer, Placing, WorkerGroup, free
from lana_ray.cluster.launch import Board, run_worker
from lana_ray.cluster.rendezvous import torch_config
from lana_ray.config import Config, RayConfig, TrainConfig
from lana_ray.errors import UserError, is_fault, one_line
from lana_ray.monitoring.progress import progress, say
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage
from lana_ray.training.micro import micro_batches

_POLL_S = 0.5
_SAY_S = 60.0
"""How long no worker may run before it is said why, and between two such lines."""
_END_S = 1800.0
"""How long no worker may run before the training ends, or longer where ``ray.label_wait_s`` is."""
_ABORT_S = 60.0
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_POLL_S),  # how soon the end is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: our workers save what they have anyway
}


def worker_group(
    config: RayConfig, training: TrainConfig, known: Sequence[Node] | None = None
) -> WorkerGroup:
    """The workers that train one network together: at most as many as its batch has micro-batches.

    Args:
        known: the nodes; those of the connected cluster by default.
    """
    parts = micro_batches(training.batch_size, training.micro_batch_size)
    ask = Ask(
        most=config.workers or parts, gpus=config.gpus_per_worker, cpus=config.cpus_per_worker, parts=parts
    )
    return elastic("worker", ask, config, nodes(gone=True) if known is None else known)


def elastic(name: str, ask: Ask, config: RayConfig, known: Sequence[Node]) -> WorkerGroup:
    """A group as large as the nodes allow, whose number follows the cluster from ``ray.min_workers`` on.

    A fixed number would wait for ever for a node that is gone for good. With ``ray.workers``, it may grow
    beyond the nodes of now, as an autoscaler brings others.
    """
    count, claim = share(ask, known)
    most = size(ask.most, ask.parts) if config.workers else max(count, 1)
    sizes = [n for n in range(1, most + 1) if size(n, ask.parts) == n]
    fewest = next((n for n in sizes if n >= config.min_workers), most)
    return WorkerGroup(
        name=name,
        workers=(fewest, most) if fewest < most else most,
        cpus=claim.cpus,
        gpus=claim.gpus,
        memory=claim.memory,
        parts=ask.parts,
    )


def describe(group: WorkerGroup, config: RayConfig) -> str:
    """How many workers a group has and what each claims, for people."""
    fewest, most = group.fewest, group.most
    count = f"{most} {group.name}{'s' * (most != 1)}"
    count = f"{fewest} to {count}" if 1 < fewest < most else f"up to {count}" if fewest < most else count
    asked = config.workers if group.gpus or group.parts or not config.gpus_per_worker else None
    fewer = f"; ray.workers {asked} is more than the work has parts" if asked and asked > most else ""
    return f"{count} of {group.claim}{fewer}"


def run_training(
    worker: Callable[[dict[str, Any]], None],
    setting: dict[str, Any],
    config: Config,
    *,
    title: str,
    total: int,
    groups: Sequence[WorkerGroup],
    process_group: bool,
    rounds: Iterable[Any] = (),
) -> None:
    """Runs ``worker`` on every Ray Train worker and shows how many of ``total`` steps are done.

    Workers keep what they finish in the run directory themselves, so a failed or killed run loses only what
    was in flight. A group whose worker dies starts again, as long as it gets further than before
    (``MAX_FAILURES``). The first group that fails ends the others.

    Args:
        setting: the worker's argument; ``config``, ``board`` and ``group`` (its name and its GPUs) are added.
        groups: each gets a trainer of its own.
        process_group: whether the workers of a group train the same network and talk to one another.
        rounds: work that the workers take from the board.

    Raises:
        UserError: a mistake of the user that only a worker could see; no node holds a worker; workers keep
            dying.
    """
    for group in groups:
        await_room(group.claim, config, count=group.fewest)
        say(f"{title}: {describe(group, config.ray)}")
    here = ray.get_runtime_context().get_node_id()
    board = (
        ray.remote(Board)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=here, soft=False))
        .remote(rounds)
    )
    training = _Training(
        title=title,
        call=(worker, setting, of_driver(config.run.dir)),
        config=config,
        groups=tuple(groups),
        process_group=process_group,
        board=board,
    )
    failures: list[BaseException] = []
    threads = training.start(failures)
    watch = _Watch(title, groups, config)
    try:
        with progress(title, total) as show:
            while any(thread.is_alive() for thread in threads) and not failures:
                time.sleep(_POLL_S)
                (done, lost), (states, mistake) = ray.get([board.news.remote(), board.groups.remote()])
                show(min(total, done))
                for name in lost:
                    say(f"{title}: {name} died; what it did since its last save is done again")
                if mistake is not None:
                    raise mistake
                if not watch.look(states):
                    break
        failed = next(iter(failures), None)  # before what is left of the groups is ended
    finally:
        _end(board, threads)
    if failed is not None:
        _fail(title, failed, config)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What the groups of one training have in common."""

    title: str
    call: tuple[Callable[[dict[str, Any]], None], Mapping[str, Any], Agreement]
    """The workers' function, its setting, and what they must have alike with the driver."""
    config: Config
    groups: tuple[WorkerGroup, ...]
    process_group: bool
    board: Any

    def start(self, failures: list[BaseException]) -> list[threading.Thread]:
        """Starts a thread for each group, which ends with it; what it raises is added to ``failures``."""
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        for variable, value in _RAY_TRAIN.items():
            os.environ.setdefault(variable, value)

        def fit(group: WorkerGroup) -> None:
            try:
                self._trainer(group).fit()
            except BaseException as error:
                failures.append(error)

        names = [f"{self.title} {group.name}" for group in self.groups]
        threads = [
            threading.Thread(target=fit, args=(group,), name=name, daemon=True)
            for group, name in zip(self.groups, names, strict=True)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _trainer(self, group: WorkerGroup) -> GroupTrainer:
        worker, setting, agreement = self.call
        config, ahead = self.config, itertools.takewhile(lambda other: other is not group, self.groups)
        own = {**setting, "config": with_cpus(config, group.cpus), "group": (group.name, group.gpus)}
        # The same name would silently resume the earlier run of that name, so it carries what is trained.
        trained = fingerprint(config, [repr(setting[key]) for key in sorted(setting)])
        backend = torch_config("nccl" if group.gpus else "gloo") if self.process_group else BackendConfig()
        return GroupTrainer(
            Placing(group=group, ahead=tuple(ahead), targets=node_labels(config), board=self.board),
            train_loop_per_worker=run_worker,
            train_loop_config={"call": pickle.dumps((worker, own, agreement)), "board": self.board},
            backend_config=backend,
            run_config=RunConfig(
                name=f"{self.title}-{group.name}-{trained}",
                storage_path=f"{config.run.dir}/ray",
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                worker_runtime_env=TRAINING_ENV,
            ),
        )


def _end(board: Any, threads: Sequence[threading.Thread]) -> None:
    """Ends the groups that are left, with all that they have claimed, and the board."""
    if any(thread.is_alive() for thread in threads):
        (states, _), (controllers, places) = ray.get([board.groups.remote(), board.held.remote()])
        # One that waits for room hears nothing; one that starts workers does when they have started.
        hearing = [c.abort.remote() for name, c in controllers.items() if states.get(name) not in WAITING]
        if hearing:
            ray.wait(hearing, num_returns=len(hearing), timeout=_ABORT_S)
        for controller in controllers.values():
            ray.kill(controller)
        for placed in places:
            remove_placement_group(placed)
        for thread in threads:
            thread.join(_ABORT_S)
    ray.kill(board)


class _Watch:
    """Says why a group has no workers, and ends a training in which none will come."""

    def __init__(self, title: str, groups: Sequence[WorkerGroup], config: Config) -> None:
        self._title, self._groups, self._config = title, groups, config
        now = time.monotonic()
        self._ran = {group.name: now for group in groups}
        self._said = dict(self._ran)

    def look(self, states: Mapping[str, str]) -> bool:
        """Takes note of the states of the groups' controllers.

        Returns:
            Whether to go on: not if groups have finished and the rest waits, as work that is left is looked
            for anew.

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
            line = f"{self._title}: no {group.name} for {now - self._ran[group.name]:.0f} s: {missing}"
            if now - max(self._ran.values()) >= max(_END_S, self._config.ray.label_wait_s):
                raise UserError(line)
            say(line)
        finished = any(state == FINISHED for state in states.values())
        return not (finished and all(states[name] == FINISHED for name in busy))

    def _missing(self, group: WorkerGroup) -> str | None:
        """Why none of a group starts; None if some are about to."""
        known = nodes(gone=True)
        if held(known, group.claim) < group.fewest:
            return no_room(group.claim, self._config.ray, known, group.fewest)
        if group.room(free(known), []):
            return None
        spare = trainers(free(known))
        cpus, gpus = sum(node.cpus for node in spare), sum(node.gpus for node in spare)
        return (
            f"no node that trains has {group.claim} free for a worker, as others hold them "
            f"({cpus} CPUs and {gpus} GPUs are free in all)"
        )


def _fail(title: str, error: BaseException, config: Config) -> NoReturn:
    """Raises the user's mistake where it was one, in one line what the machines did, else the failure itself.

    Ray tells of a worker that died with an error of its own, of others what they raised.
    """
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    causes = [cause.cause if isinstance(cause, RayTaskError) else cause for cause in (error, *failures)]
    if (mistake := next((cause for cause in causes if isinstance(cause, UserError)), None)) is not None:
        raise mistake
    Storage(config.run.dir).check_writable()  # Ray Train writes there too, and says less where it cannot
    if failures and all(type(cause).__module__.startswith("ray.") or is_fault(cause) for cause in causes[1:]):
        raise UserError(
            f"{title}: a worker died {MAX_FAILURES + 1} times without getting further than before "
            f"({one_line(causes[1])}); what is finished is kept, and running this again goes on from there"
        ) from None
    raise error
