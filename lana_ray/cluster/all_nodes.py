"""Calls a function on each of several nodes, whatever else runs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lana_ray.cluster.connection import Node
from lana_ray.monitoring.progress import say

_SAY_S = 30.0
"""Time between two lines that name the nodes still waited for."""


def ask_nodes(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    asked: Sequence[Node],
    *,
    what: str,
    limit_s: float,
) -> Iterator[tuple[Node, Any, BaseException | None]]:
    """Calls ``function(*arguments)`` on each node without claiming resources.

    Args:
        what: what the nodes have to say, for lines such as "waiting for NODE to say WHAT".
        limit_s: time limit for all nodes together, in seconds.

    Yields:
        The node, its answer, and the exception if there is no answer; in the order in which nodes answer.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    waiting = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            *arguments
        ): node
        for node in asked
    }
    start = time.monotonic()
    try:
        while waiting and time.monotonic() - start < limit_s:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=min(_SAY_S, limit_s))
            for ended in ready:
                yield waiting.pop(ended), *_answer(ended)
            if not ready:
                say(f"waiting for {', '.join(sorted(node.name for node in waiting.values()))} to say {what}")
        for node in waiting.values():
            yield node, None, TimeoutError(f"no answer within {limit_s:g} s")
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


def _answer(ended: Any) -> tuple[Any, BaseException | None]:
    try:
        return ray.get(ended), None
    except ray.exceptions.RayTaskError as error:
        return None, error.cause
    except ray.exceptions.RayError as error:
        return None, error
