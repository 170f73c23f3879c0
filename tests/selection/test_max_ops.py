"""At most so many different operations in one selection."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.selection import InfeasibleBudget, TooFewOperations, select
from lana_ray.selection.max_ops import FewOperations, fewest_operations, of_few_operations

from .brute import Instance, every, instances, sum_of, within

OPS = ("teacher", "mbconv", "bottleneck", "identity")


def limited(ops: Sequence[Sequence[str]], most: int) -> FewOperations:
    """At most so many operations besides the teacher's."""
    return FewOperations(ops=ops, most=most, free=["teacher"])


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
            instance.scores,
            instance.costs,
            instance.budgets,
            limited(ops, most),
        )
    except (InfeasibleBudget, TooFewOperations):
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
        left = of_few_operations(scores, costs, {"ms": 8.0}, limited(ops, most))
        found.append(select(left, costs, {"ms": 8.0})[0].score)
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(select(scores, costs, {"ms": 8.0})[0].score)


def few_enough(instance: Instance, ops: list[list[str]], most: int) -> list[tuple[int, ...]]:
    """Every available selection of at most so many operations, whatever the budgets."""
    tables = [instance.scores, *instance.costs.values()]
    return [
        choices
        for choices in every(instance.scores)
        if all(math.isfinite(sum_of(table, choices)) for table in tables)
        and len({of[j] for of, j in zip(ops, choices, strict=True)} - {"teacher"}) <= most
    ]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(instances(cost_names=2), st.integers(0, 2), st.data())
def test_budgets_that_so_few_cannot_keep_say_what_they_can(
    instance: Instance, most: int, data: st.DataObject
) -> None:
    """Feasible exactly where brute force finds one, and the cheapest is the cheapest."""
    ops = [list(data.draw(st.permutations(OPS)))[: len(layer)] for layer in instance.scores]
    zero = [np.where(np.isfinite(layer), 0.0, math.inf) for layer in instance.scores]
    few = few_enough(instance, ops, most)
    error: InfeasibleBudget | TooFewOperations | None = None
    try:
        left = of_few_operations(zero, instance.costs, instance.budgets, limited(ops, most))
        select(left, instance.costs, instance.budgets)
    except (InfeasibleBudget, TooFewOperations) as raised:
        error = raised
    kept = [choices for choices in few if within(instance.costs, instance.budgets, choices)]
    assert bool(kept) == (error is None)
    if isinstance(error, TooFewOperations):
        assert not few
        assert few_enough(instance, ops, error.needed)
        assert not few_enough(instance, ops, error.needed - 1)
    elif error is not None:
        others = {name: instance.budgets[name] for name in error.others}
        tables = {name: instance.costs[name] for name in others}
        among = few if error.most_operations == most else few_enough(instance, ops, len(OPS))
        costs = [sum_of(instance.costs[error.name], c) for c in among if within(tables, others, c)]
        assert error.cheapest == pytest.approx(min(costs), rel=1e-6, abs=1e-6)
        assert error.budget == pytest.approx(instance.budgets[error.name])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sets(st.sampled_from(OPS), min_size=1), min_size=1, max_size=5))
def test_the_fewest_operations_equal_brute_force(layers: list[set[str]]) -> None:
    ops = [sorted(of_layer) for of_layer in layers]
    fewest = min(len(set(chosen) - {"teacher"}) for chosen in itertools.product(*ops))
    assert fewest_operations(ops, free=["teacher"]) == fewest


def test_too_few_operations_say_so() -> None:
    scores, costs = [np.array([0.0, 1.0])] * 2, {"ms": [np.array([2.0, 1.0])] * 2}
    ops = [["teacher", "a"]] * 2
    with pytest.raises(InfeasibleBudget, match="at most 0 operations") as caught:
        of_few_operations(scores, costs, {"ms": 3.0}, limited(ops, 0))
    assert caught.value.code == "infeasible"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.cheapest, again.most_operations) == ("ms", 4.0, 0)
    with pytest.raises(InfeasibleBudget, match=r"budget ms = 1 .* costs 2;") as alone:
        of_few_operations(scores, costs, {"ms": 1.0}, FewOperations(ops=ops, most=1))
    assert alone.value.most_operations is None
    with pytest.raises(TooFewOperations, match="at least 2 operations") as needs:
        of_few_operations(scores, costs, {"ms": 9.0}, FewOperations(ops=[["a", "b"], ["c", "d"]], most=1))
    assert needs.value.code == "infeasible"
    assert pickle.loads(pickle.dumps(needs.value)).needed == 2
    with pytest.raises(ValueError, match="zero or more"):
        of_few_operations(scores, costs, {"ms": 3.0}, FewOperations(ops=ops, most=-1))
