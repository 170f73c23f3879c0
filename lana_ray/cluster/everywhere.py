"""Asks every one of some nodes the same, beside whatever runs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lana_ray.cluster.connection import Node
from lana_ray.monitoring.progress import say

_SAY_S = 30.0
"""Between two lines on whom one waits for."""


def ask_nodes(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    asked: Sequence[Node],
    *,
    what: str,
    limit_s: float,
) -> Iterator[tuple[Node, Any, BaseException | None]]:
    """Calls ``function(*arguments)`` on each node; it claims nothing there.

    Args:
        what: is asked, for a line on the nodes that are waited for.
        limit_s: in seconds, for all of them together.

    Yields:
        As they answer: the node, its answer, and what it raised or why there is none.
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
