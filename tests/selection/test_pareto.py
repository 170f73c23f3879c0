"""pareto: every trade-off that brute force finds, cheapest first, and no other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.selection import pareto, select

from .brute import Instance, Table, every, instances, sum_of, table


def brute_front(scores: Table, costs: Table) -> list[tuple[float, float]]:
    points = {(sum_of(costs, choices), sum_of(scores, choices)) for choices in every(scores)}
    front: list[tuple[float, float]] = []
    for cost, score in sorted(point for point in points if math.isfinite(sum(point))):
        if not front or score < front[-1][1]:
            front.append((cost, score))
    return front


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9)), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_the_front_equals_brute_force_on_whole_numbers(layers: list[list[tuple[int, int]]]) -> None:
    costs = table([[cost for cost, _ in layer] for layer in layers])
    scores = table([[score for _, score in layer] for layer in layers])
    front = pareto(scores, costs)
    assert [(point.costs["cost"], point.score) for point in front] == brute_front(scores, costs)
    for point in front:
        assert point.score == sum_of(scores, point.choices)
        assert point.costs == {"cost": sum_of(costs, point.choices)}
        assert (point.bound, point.gap) == (point.score, 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(instances())
def test_no_selection_beats_the_front_by_more_than_rounding(instance: Instance) -> None:
    costs = instance.costs["latency_ms"]
    points = [(point.costs["cost"], point.score) for point in pareto(instance.scores, costs)]
    assert points == sorted(points)
    assert all(later[1] < earlier[1] for earlier, later in itertools.pairwise(points))
    for cost, score in brute_front(instance.scores, costs):
        assert any(c <= cost + 1e-12 and s <= score + 1e-12 for c, s in points)


def test_the_front_holds_the_best_selection_for_every_budget() -> None:
    rng = np.random.default_rng(1)
    scores, costs = list(rng.random((12, 15))), list(rng.random((12, 15)))
    front = pareto(scores, costs)
    for budget in (0.8, 1.5, 3.0):
        [best] = select(scores, {"cost": costs}, {"cost": budget})
        within = [point for point in front if point.costs["cost"] <= budget]
        assert within[-1].score == pytest.approx(best.score, abs=1e-9)


def test_lana_size_is_exact_and_runs_from_the_cheapest_to_the_best() -> None:
    rng = np.random.default_rng(0)
    scores, costs = list(rng.random((46, 197))), list(rng.random((46, 197)))
    front = pareto(scores, costs)
    assert front[0].costs["cost"] == pytest.approx(sum(c.min() for c in costs))
    assert front[-1].score == pytest.approx(sum(s.min() for s in scores))
    assert len(front) > 1000
    assert len({point.choices for point in front}) == len(front)


def test_max_points_thins_the_finished_front_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(2)
    scores, costs = list(rng.random((10, 20))), list(rng.random((10, 20)))
    front = pareto(scores, costs)
    thin = pareto(scores, costs, max_points=7)
    assert len(thin) == 7
    assert all(point in front for point in thin)
    assert (thin[0], thin[-1]) == (front[0], front[-1])
    assert pareto(scores, costs, max_points=10**6) == front
    assert pareto(scores, costs, max_points=1) == [front[0]]


def test_one_layer_one_candidate() -> None:
    [point] = pareto(table([[2.0]]), table([[3.0]]))
    assert (point.choices, point.score, point.costs) == ((0,), 2.0, {"cost": 3.0})


def test_unavailable_candidates_are_left_out() -> None:
    [point] = pareto(table([[0.0, 5.0, math.inf]]), table([[math.inf, 2.0, 1.0]]))
    assert point.choices == (1,)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="costs of cost, layer 0, candidate 1: -1"):
        pareto(table([[0, 1]]), table([[1, -1]]))
    with pytest.raises(ValueError, match="max_points"):
        pareto(table([[0, 1]]), table([[1, 1]]), max_points=0)
