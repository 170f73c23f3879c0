"""Runs a Ray Train job from the driver, with its progress."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lana_ray.cluster import TRAINING_ENV, worker_count
from lana_ray.config import Config, RayConfig
from lana_ray.errors import UserError
from lana_ray.progress import progress, say
from lana_ray.storage import Storage, fingerprint
from lana_ray.training.launch import Board, run_worker

MAX_FAILURES = 3
_POLL_S = 0.5
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_POLL_S),  # how soon the end is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: our workers save what they have anyway
}


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Ray Train workers of one kind."""

    name: str
    workers: int | tuple[int, int]
    """How many, or the fewest and the most between which their number follows the cluster."""
    cpus: int
    gpus: float = 0

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def worker_group(config: RayConfig) -> WorkerGroup:
    """The workers that the configuration asks for, to train one network together."""
    return WorkerGroup(
        name="workers",
        workers=elastic(config.min_workers, worker_count(config)),
        cpus=config.cpus_per_worker,
        gpus=config.gpus_per_worker,
    )


def elastic(fewest: int, most: int) -> int | tuple[int, int]:
    """``WorkerGroup.workers``: a fixed number would wait for ever for a node that is gone for good."""
    return (fewest, most) if fewest < most else most


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
    was in flight; a worker that dies is replaced up to ``MAX_FAILURES`` times.

    Args:
        setting: the worker's argument; ``config``, ``board`` and ``group`` (its name and its GPUs) are added.
        groups: each gets a trainer of its own.
        process_group: whether the workers of a group train the same network and talk to one another.
        rounds: work that the workers take from the board.

    Raises:
        UserError: a mistake of the user that only a worker could see.
    """
    here = ray.get_runtime_context().get_node_id()
    board = (
        ray.remote(Board)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=here, soft=False))
        .remote(rounds)
    )
    trained = fingerprint(config, [repr(setting[key]) for key in sorted(setting)])
    failures: list[BaseException] = []

    def fit(group: WorkerGroup) -> None:
        # The same name would silently resume the earlier run of that name, so it carries what is trained.
        name = f"{title}-{group.name}-{trained}"
        own = {**setting, "config": config, "group": (group.name, group.gpus)}
        call = {"call": pickle.dumps((worker, own)), "board": board}
        try:
            _trainer(call, config, name, group, process_group).fit()
        except BaseException as error:
            failures.append(error)

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    for variable, value in _RAY_TRAIN.items():
        os.environ.setdefault(variable, value)
    threads = [threading.Thread(target=fit, args=(g,), name=f"{title} {g.name}", daemon=True) for g in groups]
    for thread in threads:
        thread.start()
    with progress(title, total) as show:
        while any(thread.is_alive() for thread in threads):
            time.sleep(_POLL_S)
            done, lost = ray.get(board.news.remote())
            show(min(total, done))
            for name in lost:
                say(f"{title}: {name} died; what it had in hand and had not written is done again")
    ray.kill(board)
    if failures:
        _fail(failures[0], config)


def _trainer(
    setting: dict[str, Any], config: Config, name: str, group: WorkerGroup, process_group: bool
) -> DataParallelTrainer:
    resources = {"CPU": float(group.cpus)} | ({"GPU": group.gpus} if group.gpus else {})
    options: dict[str, Any] = {
        "train_loop_config": setting,
        "scaling_config": ScalingConfig(
            num_workers=group.workers, use_gpu=group.gpus > 0, resources_per_worker=resources
        ),
        "run_config": RunConfig(
            name=name,
            storage_path=f"{config.run.dir}/ray",
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env=TRAINING_ENV,
        ),
    }
    if not process_group:
        return DataParallelTrainer(run_worker, **options)
    backend = "nccl" if group.gpus else "gloo"
    return TorchTrainer(run_worker, torch_config=TorchConfig(backend=backend), **options)


def _fail(error: BaseException, config: Config) -> NoReturn:
    """Raises the user's mistake where it was one, else the failure itself."""
    if (mistake := _user_error(error)) is not None:
        raise mistake
    Storage(config.run.dir).check_writable()  # Ray Train writes there too, and says less where it cannot
    raise error


def _user_error(error: BaseException) -> UserError | None:
    """The user's mistake inside a failure of Ray Train, if there is one."""
    inside: list[Any] = [error, error.__cause__, *getattr(error, "worker_failures", {}).values()]
    inside += [getattr(e, "cause", None) for e in inside] + [getattr(e, "_base_exc", None) for e in inside]
    return next((e for e in inside if isinstance(e, UserError)), None)
