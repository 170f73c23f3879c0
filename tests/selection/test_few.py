"""At most so many different operations in one selection."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.selection import InfeasibleBudget, NoSelectionFound, select
from lana_ray.selection.few import of_few_operations

from .brute import Instance, every, instances, sum_of, within

OPS = ("teacher", "mbconv", "bottleneck", "identity")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(instances(), st.integers(0, 3), st.data())
def test_the_best_selection_of_few_operations_equals_brute_force(
    instance: Instance, most: int, data: st.DataObject
) -> None:
    ops = [data.draw(st.permutations(OPS))[: len(layer)] for layer in instance.scores]
    fitting = {
        choices: sum_of(instance.scores, choices)
        for choices in every(instance.scores)
        if within(instance.costs, instance.budgets, choices)
        and len({of[j] for of, j in zip(ops, choices, strict=True)} - {"teacher"}) <= most
    }
    best = min(fitting.values(), default=math.inf)
    try:
        left = of_few_operations(
            instance.scores, instance.costs, instance.budgets, ops, most, free=["teacher"]
        )
    except (InfeasibleBudget, NoSelectionFound):
        assert best == math.inf
        return
    found = select(left, instance.costs, instance.budgets, count=3)
    assert found[0].score == pytest.approx(best, rel=1e-6, abs=1e-6)
    used = {of[j] for one in found for of, j in zip(ops, one.choices, strict=True)} - {"teacher"}
    assert len(used) <= most


def test_more_operations_are_never_worse_at_a_real_size() -> None:
    rng = np.random.default_rng(0)
    names = ["teacher", *(f"op{k}" for k in range(19))]
    ops, scores = [names] * 16, [np.append(0.0, rng.random(19)) for _ in range(16)]
    costs = {"ms": [np.append(1.0, rng.random(19)) for _ in range(16)]}
    found = []
    for most in (1, 2, 4, 8, 19):
        left = of_few_operations(scores, costs, {"ms": 8.0}, ops, most, free=["teacher"])
        found.append(select(left, costs, {"ms": 8.0})[0].score)
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(select(scores, costs, {"ms": 8.0})[0].score)


def test_too_few_operations_say_so() -> None:
    scores, costs = [np.array([0.0, 1.0])] * 2, {"ms": [np.array([2.0, 1.0])] * 2}
    with pytest.raises(NoSelectionFound, match="with 0 operations beside teacher; allow more"):
        of_few_operations(scores, costs, {"ms": 3.0}, [["teacher", "a"]] * 2, 0, free=["teacher"])
    with pytest.raises(InfeasibleBudget, match="cheapest selection costs 2"):
        of_few_operations(scores, costs, {"ms": 1.0}, [["teacher", "a"]] * 2, 1)
    with pytest.raises(ValueError, match="zero or more"):
        of_few_operations(scores, costs, {"ms": 3.0}, [["teacher", "a"]] * 2, -1)
