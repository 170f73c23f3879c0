"""Small selection problems, and their answers by trying every selection."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

Table = list[np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True)
class Instance:
    scores: Table
    costs: dict[str, Table]
    budgets: dict[str, float]


def table(rows: Sequence[Sequence[float]]) -> Table:
    return [np.array(row, dtype=np.float64) for row in rows]


def sum_of(values: Table, choices: Sequence[int]) -> float:
    return math.fsum(layer[j] for layer, j in zip(values, choices, strict=True))


def within(costs: Mapping[str, Table], budgets: Mapping[str, float], choices: Sequence[int]) -> bool:
    return all(sum_of(costs[name], choices) <= budget for name, budget in budgets.items())


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def every(scores: Table) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(layer)) for layer in scores))


def best_score(instance: Instance, earlier: Sequence[Sequence[int]] = (), may_agree: int = 0) -> float | None:
    """The least score within the budgets and unlike ``earlier``; None where there is no such selection."""
    fitting = (
        sum_of(instance.scores, choices)
        for choices in every(instance.scores)
        if within(instance.costs, instance.budgets, choices)
        and all(agreement(choices, other) <= may_agree for other in earlier)
    )
    best = min(fitting, default=math.inf)
    return None if best == math.inf else best


NUMBERS = st.one_of(
    st.integers(0, 6).map(float),
    st.integers(0, 12).map(lambda n: n / 10),
    st.floats(0, 10, allow_subnormal=False),
)


@st.composite
def instances(draw: st.DrawFn, cost_names: int = 1, unavailable: bool = True) -> Instance:
    """A few layers and candidates, ties and near-ties likely, budgets often met exactly."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    scores = table([draw(st.lists(NUMBERS, min_size=m, max_size=m)) for m in sizes])
    shift = draw(st.sampled_from([0.0, -3.0]))
    scores = [layer + shift for layer in scores]
    names = ["latency_ms", "peak_memory_mb", "energy_mj"][:cost_names]
    costs = {name: table([draw(st.lists(NUMBERS, min_size=m, max_size=m)) for m in sizes]) for name in names}
    if unavailable and draw(st.booleans()):
        layer = draw(st.integers(0, len(sizes) - 1))
        if sizes[layer] > 1:
            where = draw(st.sampled_from([scores, *costs.values()]))
            where[layer][draw(st.integers(0, sizes[layer] - 1))] = math.inf
    budgets = {}
    for name in names:
        reached = [draw(st.integers(0, m - 1)) for m in sizes]
        near = sum_of(costs[name], reached)
        budgets[name] = draw(st.sampled_from([near, near * 0.9, near * 1.1, near * (1 - 1e-10)]))
        if not math.isfinite(budgets[name]):
            budgets[name] = 3.0
    return Instance(scores, costs, budgets)
