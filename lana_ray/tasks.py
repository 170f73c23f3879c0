"""Independent pieces of work as Ray tasks, with progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.exceptions
import torch

from lana_ray.cluster import TRAINING_ENV
from lana_ray.config import Config
from lana_ray.errors import UserError
from lana_ray.progress import progress
from lana_ray.workspace import Workspace, workspace_in_worker

_MAX_RETRIES = 3


def run_tasks(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], config: Config, *, title: str
) -> list[Any]:
    """Calls ``function(workspace, *arguments[k])`` for every k, in parallel over the cluster, in order of k.

    A task whose worker dies is run again. Tasks keep in the run directory what must not be lost.

    Raises:
        UserError: a mistake of the user that only a task could see.
    """

    def task(*values: Any) -> Any:
        torch.set_num_threads(config.ray.cpus_per_worker)
        return function(workspace_in_worker(config), *values)

    remote = ray.remote(task).options(
        num_cpus=config.ray.cpus_per_worker,
        num_gpus=config.ray.gpus_per_worker,
        max_retries=_MAX_RETRIES,
        runtime_env=TRAINING_ENV,
    )
    waiting = {remote.remote(*values): k for k, values in enumerate(arguments)}
    results: list[Any] = [None] * len(arguments)
    with progress(title, len(arguments)) as show:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            try:
                results[waiting.pop(ready)] = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
            show(len(arguments) - len(waiting))
    return results


def device(workspace: Workspace) -> torch.device:
    """Where a worker's networks run."""
    return torch.device("cuda" if workspace.config.ray.gpus_per_worker else "cpu")
