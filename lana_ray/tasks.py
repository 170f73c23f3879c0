"""Independent pieces of work as Ray tasks, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions
import torch

from lana_ray.cluster import TRAINING_ENV, nodes
from lana_ray.config import Config, Target
from lana_ray.errors import UserError
from lana_ray.placement import Placement, assign_targets
from lana_ray.progress import progress, say
from lana_ray.workspace import Workspace, workspace_in_worker

_MAX_RETRIES = 3
_LOOK_S = 10.0
"""Without a result, before the nodes are looked at again."""
_LONGEST_REASON = 300


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


def run_on_targets(
    function: Callable[..., Any], asked: Sequence[tuple[Target, tuple[Any, ...]]], config: Config
) -> Iterator[tuple[int, Any, str | None]]:
    """Calls ``function(*arguments)`` on a node of a target, for every (target, arguments).

    A call claims what a sampler does, so that nothing is measured beside it; a target's nodes share its
    calls, and targets of one device wait for one another. One whose worker or node dies is made again.

    Yields:
        As calls end: the position in ``asked``, the result, and on one line why there is none: what was
        raised, or that its workers keep dying.

    Raises:
        UserError: when no node serves a target, or none any more.
    """
    targets = {target.name: target for target, _ in asked}
    remote = {name: _on_nodes_of(target, function, config) for name, target in targets.items()}
    waiting = {remote[target.name].remote(*values): k for k, (target, values) in enumerate(asked)}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_LOOK_S)
            if not ready:  # for tasks that nobody serves any more Ray waits for ever
                _placed([asked[position][0] for position in waiting.values()], config)
            for ended in ready:
                yield waiting.pop(ended), *_outcome(ended)
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


def _on_nodes_of(target: Target, function: Callable[..., Any], config: Config) -> Any:
    placement = _placed([target], config)[target.name]
    environment = {"env_vars": {"OMP_NUM_THREADS": str(target.threads)}}
    return ray.remote(function).options(
        max_retries=_MAX_RETRIES, runtime_env=environment, **placement.options()
    )


def _placed(targets: Sequence[Target], config: Config) -> dict[str, Placement]:
    return assign_targets(targets, nodes(), wait_s=config.ray.label_wait_s, on_wait=say)


def _outcome(ended: Any) -> tuple[Any, str | None]:
    """The result of a task, or why there is none."""
    try:
        return ray.get(ended), None
    except ray.exceptions.RayTaskError as error:
        reason: BaseException = error.cause
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        reason = error
    return None, " ".join(f"{type(reason).__name__}: {reason}".split())[:_LONGEST_REASON]


def device(workspace: Workspace) -> torch.device:
    """Where a worker's networks run."""
    return torch.device("cuda" if workspace.config.ray.gpus_per_worker else "cpu")
