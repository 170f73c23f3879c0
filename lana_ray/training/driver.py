"""Runs a Ray Train job from the driver, with its progress."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lana_ray.cluster import TRAINING_ENV, worker_count
from lana_ray.config import Config
from lana_ray.errors import UserError
from lana_ray.progress import progress
from lana_ray.storage import fingerprint
from lana_ray.training.launch import Board, run_worker

MAX_FAILURES = 3
_POLL_S = 0.5
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_POLL_S),  # how soon the end is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: our workers save what they have anyway
}


def run_training(
    worker: Callable[[dict[str, Any]], None],
    setting: dict[str, Any],
    config: Config,
    *,
    title: str,
    total: int,
    workers: int | None = None,
    process_group: bool,
) -> None:
    """Runs ``worker`` on every Ray Train worker and shows how many of ``total`` steps are done.

    Workers keep what they finish in the run directory themselves, so a failed or killed run loses only what
    was in flight; a worker that dies is replaced up to ``MAX_FAILURES`` times.

    Args:
        setting: the worker's argument; ``config`` and ``board`` are added.
        process_group: whether the workers train the same network and talk to one another.

    Raises:
        UserError: a mistake of the user that only a worker could see.
    """
    here = ray.get_runtime_context().get_node_id()
    board = (
        ray.remote(Board)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=here, soft=False))
        .remote()
    )
    call = pickle.dumps((worker, {**setting, "config": config}))
    # The same name would silently resume the earlier run of that name, so it carries what is trained.
    name = f"{title}-{fingerprint(config, [repr(setting[key]) for key in sorted(setting)])}"
    trainer = _trainer(
        {"call": call, "board": board}, config, name, workers or worker_count(config.ray), process_group
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    for variable, value in _RAY_TRAIN.items():
        os.environ.setdefault(variable, value)
    thread = threading.Thread(target=fit, name=title, daemon=True)
    thread.start()
    with progress(title, total) as show:
        while thread.is_alive():
            thread.join(_POLL_S)
            show(min(total, ray.get(board.done.remote())))
    ray.kill(board)
    if failures:
        raise _user_error(failures[0]) or failures[0]


def _trainer(
    setting: dict[str, Any], config: Config, name: str, workers: int, process_group: bool
) -> DataParallelTrainer:
    gpus = config.ray.gpus_per_worker
    resources = {"CPU": float(config.ray.cpus_per_worker)} | ({"GPU": gpus} if gpus else {})
    options: dict[str, Any] = {
        "train_loop_config": setting,
        "scaling_config": ScalingConfig(
            num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources
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
    return TorchTrainer(run_worker, torch_config=TorchConfig(backend="nccl" if gpus else "gloo"), **options)


def _user_error(error: BaseException) -> UserError | None:
    """The user's mistake inside a failure of Ray Train, if there is one."""
    inside: list[Any] = [error, error.__cause__, *getattr(error, "worker_failures", {}).values()]
    inside += [getattr(e, "cause", None) for e in inside] + [getattr(e, "_base_exc", None) for e in inside]
    return next((e for e in inside if isinstance(e, UserError)), None)
