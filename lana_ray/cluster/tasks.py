"""Runs independent pieces of work as Ray tasks, with progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions
import torch

from lana_ray.cluster.agreement import of_driver
from lana_ray.cluster.claims import PROCESS_BYTES, Ask, Claim, await_room, placed, share, threads
from lana_ray.cluster.connection import MAX_RETRIES, TRAINING_ENV, nodes
from lana_ray.cluster.placement import Placement, assign_targets
from lana_ray.config import Config, Target
from lana_ray.errors import UserError, one_line
from lana_ray.monitoring.progress import progress, say
from lana_ray.workspace import Workspace, workspace_in_worker

_LOOK_S = 10.0
"""Time without a result after which the nodes are checked again."""
_ABSENT_S = 60.0
"""Shortest wait for a node with room for a task to come back."""
_PASSING = 3
"""How many copies of the widest layer's input and output, at 4 bytes a number, a pass holds at a time."""
_LONGEST_REASON = 300


def run_tasks(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    config: Config,
    *,
    title: str,
    memory: int = PROCESS_BYTES,
) -> list[Any]:
    """Calls ``function(workspace, *arguments[k])`` for every k in parallel; returns results in order of k.

    A task is retried if its worker dies. Tasks must write results that may not be lost to the run directory.

    Args:
        memory: bytes that a call takes, including its process.

    Raises:
        UserError: a mistake of the user that only a task could detect, such as other code on its node; no
            node has room for a task; a task needs more memory than its node has; its process keeps dying.
    """
    if not arguments:
        return []
    cpus, gpus = config.ray.cpus_per_worker, config.ray.gpus_per_worker
    ask = Ask(most=len(arguments), cpus=cpus, gpus=gpus, memory=memory)
    _, claim = share(ask, nodes(gone=True))
    await_room(claim, config)
    agreement = of_driver(config.run.dir)

    def task(*values: Any) -> Any:
        agreement.check()
        torch.set_num_threads(threads(claim.cpus))
        return function(workspace_in_worker(config), *values)

    # A process that has used a GPU keeps some of its memory, and may be assigned another GPU later.
    remote = ray.remote(max_calls=1 if claim.gpus else 0)(task).options(
        max_retries=MAX_RETRIES, runtime_env=TRAINING_ENV, **placed(claim, config)
    )
    waiting = {remote.remote(*values): k for k, values in enumerate(arguments)}
    results: list[Any] = [None] * len(arguments)
    try:
        with progress(title, len(arguments)) as show:
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_LOOK_S)
                # Ray would wait forever for tasks that no longer fit on any node.
                if not ready:
                    await_room(claim, config, wait_s=max(_ABSENT_S, config.ray.label_wait_s))
                for ended in ready:
                    results[waiting.pop(ended)] = _result(ended, title, claim)
                show(len(arguments) - len(waiting))
    finally:
        for left in waiting:
            ray.cancel(left, force=True)
    return results


def _result(ended: Any, title: str, claim: Claim) -> Any:
    try:
        return ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError) else error from None
    except ray.exceptions.OutOfMemoryError:
        raise UserError(
            "failed",
            f"{title}: a task was killed {MAX_RETRIES + 1} times because its node ran out of memory; raise "
            f"ray.cpus_per_worker above {claim.cpus}, so that fewer tasks run on a node at a time",
        ) from None
    except ray.exceptions.WorkerCrashedError as error:
        raise UserError(
            "failed",
            f"{title}: the process of a task died {MAX_RETRIES + 1} times ({one_line(error)}); fix this and "
            "rerun the same command; finished work is kept",
        ) from None


def run_on_targets(
    function: Callable[..., Any], asked: Sequence[tuple[Target, tuple[Any, ...]]], config: Config
) -> Iterator[tuple[int, Any, str | None]]:
    """Calls ``function(*arguments)`` on a node of the target, for every (target, arguments).

    A call claims all devices of a node, so that nothing is measured at the same time; a target's nodes share
    its calls, and targets on the same device wait for one another. A call is retried if its worker or
    node dies.

    Yields:
        The position in ``asked``, the result, and a one-line reason if there is no result (an exception, or
        workers that keep dying); in the order in which calls end.

    Raises:
        UserError: no node serves a target, or none any longer.
    """
    targets = {target.name: target for target, _ in asked}
    remote = {name: _on_nodes_of(target, function, config) for name, target in targets.items()}
    waiting = {remote[target.name].remote(*values): k for k, (target, values) in enumerate(asked)}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_LOOK_S)
            # Ray would wait forever for targets that no node serves any longer.
            if not ready:
                _placed([asked[k][0] for k in waiting.values()], config)
            for ended in ready:
                yield waiting.pop(ended), *_outcome(ended)
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


shared = ray.put
"""Returns a reference to an argument of several calls, which is sent to each node only once; the called
functions get the argument itself."""


def _on_nodes_of(target: Target, function: Callable[..., Any], config: Config) -> Any:
    placement = _placed([target], config)[target.name]
    environment = {"env_vars": {"OMP_NUM_THREADS": str(target.threads)}}
    # A process that has used a GPU keeps some of its memory, and its faults: it calls the function once.
    return ray.remote(max_calls=1 if placement.num_gpus else 0)(function).options(
        max_retries=MAX_RETRIES, runtime_env=environment, **placement.alone.options()
    )


def _placed(targets: Sequence[Target], config: Config) -> dict[str, Placement]:
    return assign_targets(targets, nodes(), wait_s=config.ray.label_wait_s, on_wait=say)


def _outcome(ended: Any) -> tuple[Any, str | None]:
    """Returns the result of a task, or the reason why there is none."""
    try:
        return ray.get(ended), None
    except ray.exceptions.RayTaskError as error:
        reason: BaseException = error.cause
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        reason = error
    return None, " ".join(f"{type(reason).__name__}: {reason}".split())[:_LONGEST_REASON]


def task_bytes(workspace: Workspace, batch_size: int) -> int:
    """Returns the bytes of memory of a task that sends batches through the teacher or a student."""
    widest = max(math.prod(layer.input_shape) + math.prod(layer.output_shape) for layer in workspace.layers)
    return PROCESS_BYTES + _PASSING * 4 * batch_size * widest


def device(workspace: Workspace) -> torch.device:
    """Returns the device on which a worker's networks run."""
    return torch.device("cuda" if workspace.config.ray.gpus_per_worker else "cpu")
