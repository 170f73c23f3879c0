"""select: optimal, within every budget, diverse, and plain about what cannot be had."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.errors import UserError
from lana_ray.selection import InfeasibleBudget, NoSelectionFound, Selection, ilp, select

from .brute import Instance, agreement, best_score, instances, sum_of, table, within

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def solve(instance: Instance, **options: Any) -> list[Selection] | None:
    """The selections; None where the budgets cannot be met."""
    try:
        return select(instance.scores, instance.costs, instance.budgets, **options)
    except InfeasibleBudget:
        return None


def lana_sized(seed: int) -> tuple[Any, Any, float]:
    """46 layers of 197 candidates that trade latency for score; the budget is half the teacher's."""
    rng = np.random.default_rng(seed)
    teacher = rng.uniform(0.2, 2.0, 46)
    costs = [t * np.append(1.0, rng.uniform(0.02, 1.3, 196)) for t in teacher]
    scores = [
        np.append(0.0, 0.02 * rng.lognormal(size=196) * np.maximum(1.05 - c[1:] / c[0], 0.02)) for c in costs
    ]
    return scores, costs, 0.5 * float(teacher.sum())


def random_scores_and_costs(seed: int, layers: int, candidates: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return list(rng.random((layers, candidates))), list(rng.random((layers, candidates)))


@PROPERTY
@given(st.integers(1, 3).flatmap(instances))
def test_budgets_can_be_met_where_brute_force_meets_them(instance: Instance) -> None:
    """With scores that are all zero the program says whether there is any selection."""
    zero = [np.where(np.isfinite(layer), 0.0, math.inf) for layer in instance.scores]
    found = solve(Instance(zero, instance.costs, instance.budgets))
    assert (found is None) == (best_score(instance) is None)
    if found is not None:
        assert within(instance.costs, instance.budgets, found[0].choices)


@PROPERTY
@given(st.integers(1, 3).flatmap(instances))
def test_the_best_selection_equals_brute_force(instance: Instance) -> None:
    best = best_score(instance)
    found = solve(instance)
    if found is None or best is None:
        assert found is None
        assert best is None
        return
    [selection] = found
    assert selection.score == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert len(selection.choices) == len(instance.scores)
    assert within(instance.costs, instance.budgets, selection.choices)
    assert selection.score == sum_of(instance.scores, selection.choices)
    assert selection.costs == {n: sum_of(c, selection.choices) for n, c in instance.costs.items()}
    assert selection.bound <= best + 1e-6
    assert selection.gap == pytest.approx(0, abs=1e-6)


def allowed_overlap(instance: Instance, max_overlap: float) -> int:
    """On how many layers two selections may agree."""
    layers = len(instance.scores)
    return min(math.floor(max_overlap * layers + 1e-9), layers - 1)


@PROPERTY
@given(instances(cost_names=2), st.integers(2, 6), st.sampled_from([0.0, 0.5, 0.7, 1.0]))
def test_each_further_selection_is_the_best_unlike_the_earlier(
    instance: Instance, count: int, max_overlap: float
) -> None:
    found = solve(instance, count=count, max_overlap=max_overlap)
    if found is None:
        return
    may_agree = allowed_overlap(instance, max_overlap)
    for k, selection in enumerate(found):
        earlier = [other.choices for other in found[:k]]
        assert all(agreement(selection.choices, other) <= may_agree for other in earlier)
        assert within(instance.costs, instance.budgets, selection.choices)
        assert selection.score == pytest.approx(best_score(instance, earlier, may_agree), rel=1e-6, abs=1e-6)
    if len(found) < count:
        assert best_score(instance, [selection.choices for selection in found], may_agree) is None


@PROPERTY
@given(instances(cost_names=2), st.integers(2, 6), st.sampled_from([0.0, 0.5, 0.7, 1.0]))
def test_what_is_not_proven_optimal_has_a_bound_that_holds(
    instance: Instance, count: int, max_overlap: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ilp, "_UNPROVEN", 0.0)
        found = solve(instance, count=count, max_overlap=max_overlap)
    if found is None:
        return
    may_agree = allowed_overlap(instance, max_overlap)
    for k, selection in enumerate(found):
        earlier = [other.choices for other in found[:k]]
        best = best_score(instance, earlier, may_agree)
        assert best is not None
        assert selection.bound - 1e-6 <= best <= selection.score + 1e-6
        assert all(agreement(selection.choices, other) <= may_agree for other in earlier)
        assert within(instance.costs, instance.budgets, selection.choices)


@PROPERTY
@given(instances(), st.floats(1, 2))
def test_a_larger_budget_is_never_worse(instance: Instance, factor: float) -> None:
    found = solve(instance)
    if found is None:
        return
    larger = {name: budget * factor for name, budget in instance.budgets.items()}
    [relaxed] = select(instance.scores, instance.costs, larger)
    assert relaxed.score <= found[0].score + 1e-6


@PROPERTY
@given(instances(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(instance: Instance, random: Any) -> None:
    orders = []
    for layer in instance.scores:
        order = list(range(len(layer)))
        random.shuffle(order)
        orders.append(order)
    shuffled = Instance(
        [layer[order] for layer, order in zip(instance.scores, orders, strict=True)],
        {
            name: [layer[order] for layer, order in zip(costs, orders, strict=True)]
            for name, costs in instance.costs.items()
        },
        instance.budgets,
    )
    one, other = solve(instance, count=4), solve(shuffled, count=4)
    assert (one is None) == (other is None)
    if one and other:
        assert [selection.score for selection in other] == [selection.score for selection in one]
        assert [selection.costs for selection in other] == [selection.costs for selection in one]


@PROPERTY
@given(instances(cost_names=2))
def test_the_same_problem_has_the_same_answer(instance: Instance) -> None:
    assert solve(instance, count=4) == solve(instance, count=4)


@pytest.mark.parametrize("cost_unit", [1e-9, 1e-3, 1e6])
@pytest.mark.parametrize("score_unit", [1e-8, 1e6])
def test_units_do_not_matter(cost_unit: float, score_unit: float) -> None:
    scores, costs = random_scores_and_costs(3, 12, 20)
    [plain] = select(scores, {"latency_ms": costs}, {"latency_ms": 2.5})
    [scaled] = select(
        [s * score_unit for s in scores],
        {"latency_ms": [c * cost_unit for c in costs]},
        {"latency_ms": 2.5 * cost_unit},
    )
    assert scaled.choices == plain.choices
    assert scaled.score == pytest.approx(plain.score * score_unit)
    assert scaled.costs["latency_ms"] == pytest.approx(plain.costs["latency_ms"] * cost_unit)


def test_a_hopeless_candidate_does_not_blur_the_others() -> None:
    scores, costs = random_scores_and_costs(4, 10, 12)
    budgets = {"latency_ms": 2.0}
    [before] = select(scores, {"latency_ms": costs}, budgets)
    spoilt_scores = [np.append(s, 1e9) for s in scores]
    spoilt_costs = [np.append(c, 1e9) for c in costs]
    [after] = select(spoilt_scores, {"latency_ms": spoilt_costs}, budgets)
    assert after.choices == before.choices


@pytest.mark.parametrize("layers", [4, 20])
def test_sums_that_only_just_exceed_the_budget_are_refused(layers: int) -> None:
    scores = [np.array([1.0, 0.0])] * layers
    costs = {"latency_ms": [np.array([0.0, 0.1])] * layers}
    budget = math.nextafter(math.fsum([0.1] * 3), 0)  # three fit but for one unit in the last place
    [selection] = select(scores, costs, {"latency_ms": budget})
    assert selection.costs["latency_ms"] <= budget
    assert selection.score == layers - 2
    assert selection.bound in (layers - 2, layers - 3)


def test_of_sums_that_differ_by_rounding_the_one_within_the_budget_is_taken() -> None:
    costs = {"latency_ms": table([[0.0, 0.1, 0.3], [0.0, 0.2, 0.3]])}
    [selection] = select(table([[9, 5, 0], [6, 0, 9]]), costs, {"latency_ms": 0.3})
    assert selection.choices == (2, 0)  # 0.1 + 0.2 is more than 0.3
    assert selection.gap == 0


def test_a_budget_met_exactly_is_met() -> None:
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.random(5)) for _ in range(30)]
    scores = [-c for c in costs]
    budget = math.fsum(c[-1] for c in costs)
    [selection] = select(scores, {"latency_ms": costs}, {"latency_ms": budget})
    assert selection.choices == (4,) * 30
    [cheapest] = select(scores, {"latency_ms": costs}, {"latency_ms": math.fsum(c[0] for c in costs)})
    assert cheapest.choices == (0,) * 30


@pytest.mark.parametrize(
    ("scores", "costs", "budget", "choices"),
    [
        pytest.param([[2.0]], [[5.0]], 5.0, (0,), id="one layer, one candidate"),
        pytest.param([[2.0, 1.0]], [[5.0, 5.0]], 5.0, (1,), id="equal costs"),
        pytest.param([[2.0, 1.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]], 0.0, (1, 0), id="all free"),
        pytest.param([[2.0, 1.0], [5.0, 3.0]], [[0.0, 1e-12], [0.0, 0.0]], 0.0, (0, 1), id="zero budget"),
        pytest.param([[1.0], [1.0, 0.0]], [[1.0], [1.0, 9.0]], math.inf, (0, 1), id="no limit"),
        pytest.param([[-1.0, -2.0]], [[1.0, 2.0]], 1.5, (0,), id="negative scores"),
        pytest.param([[0.0, math.inf]], [[2.0, 1.0]], 3.0, (0,), id="unavailable by score"),
        pytest.param([[1.0, 0.0]], [[2.0, math.inf]], math.inf, (0,), id="unavailable by cost"),
    ],
)
def test_degenerate_problems(
    scores: list[list[float]], costs: list[list[float]], budget: float, choices: tuple[int, ...]
) -> None:
    [selection] = select(table(scores), {"latency_ms": table(costs)}, {"latency_ms": budget})
    assert selection.choices == choices
    assert selection.bound == selection.score
    assert selection.gap == 0


def test_without_budgets_each_layer_takes_its_best() -> None:
    scores, costs = random_scores_and_costs(5, 8, 6)
    [selection] = select(scores, {"latency_ms": costs}, {})
    assert selection.choices == tuple(int(s.argmin()) for s in scores)
    assert selection.costs["latency_ms"] > 0


def test_selections_always_differ_and_end_when_there_are_no_more() -> None:
    found = select(table([[0, 1], [0, 2]]), {}, {}, count=10, max_overlap=1.0)
    assert [selection.score for selection in found] == [0, 1, 2, 3]
    assert len({selection.choices for selection in found}) == 4


def test_lana_size_is_solved_to_proven_optimality() -> None:
    scores, costs, budget = lana_sized(0)
    [selection] = select(scores, {"latency_ms": costs}, {"latency_ms": budget})
    assert selection.gap == 0
    assert 0.99 * budget < selection.costs["latency_ms"] <= budget


@pytest.mark.slow
def test_many_unlike_selections_at_lana_size() -> None:
    scores, costs, budget = lana_sized(5)
    found = select(scores, {"latency_ms": costs}, {"latency_ms": budget}, count=20, time_limit_s=30.0)
    assert len(found) == 20
    for k, selection in enumerate(found):
        assert selection.costs["latency_ms"] <= budget
        assert all(agreement(selection.choices, earlier.choices) <= 32 for earlier in found[:k])
    assert found[0].gap == 0
    assert max(selection.gap for selection in found[:10]) < 0.01
    assert max(selection.gap for selection in found) < 0.05


def test_several_targets_and_memory_at_lana_size() -> None:
    scores, costs, budget = lana_sized(1)
    rng = np.random.default_rng(2)
    other = [c * rng.uniform(0.5, 2.0, len(c)) for c in costs]
    memory = [rng.uniform(1, 50, len(c)) for c in costs]
    budgets = {"latency_ms": budget, "other_ms": 1.2 * budget, "peak_memory_mb": 900.0}
    tables = {"latency_ms": costs, "other_ms": other, "peak_memory_mb": memory}
    [selection] = select(scores, tables, budgets, time_limit_s=3.0)
    assert all(selection.costs[name] <= limit for name, limit in budgets.items())
    assert selection.gap < 0.05


def test_a_time_limit_yields_the_best_found_with_its_gap() -> None:
    scores, costs, budget = lana_sized(3)
    found = select(scores, {"latency_ms": costs}, {"latency_ms": budget}, count=12, time_limit_s=2.5)
    assert 1 <= len(found) <= 12
    for k, selection in enumerate(found):
        assert selection.bound <= selection.score
        assert (selection.gap == 0) == (selection.bound == selection.score)
        assert selection.costs["latency_ms"] <= budget
        assert all(agreement(selection.choices, earlier.choices) <= 32 for earlier in found[:k])
    assert found[0].score <= min(selection.score for selection in found) + 1e-9


def test_too_little_time_is_said_plainly() -> None:
    scores, costs, budget = lana_sized(0)
    with pytest.raises(NoSelectionFound, match="raise time_limit_s"):
        select(scores, {"latency_ms": costs}, {"latency_ms": budget}, time_limit_s=1e-6)


def test_a_budget_below_the_cheapest_is_explained() -> None:
    costs = {"latency_ms": table([[3, 1.5], [2, 1]]), "params": table([[1, 1], [1, 1]])}
    with pytest.raises(InfeasibleBudget, match=r"latency_ms = 2 .* costs 2\.5") as caught:
        select(table([[0, 1], [0, 1]]), costs, {"params": 5.0, "latency_ms": 2.0})
    error = caught.value
    assert isinstance(error, UserError)
    assert error.code == "infeasible"
    assert isinstance(error, ValueError)
    assert (error.name, error.budget, error.cheapest, error.others) == ("latency_ms", 2.0, 2.5, ())
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.cheapest) == (str(error), 2.5)


def test_budgets_that_clash_are_explained_together() -> None:
    costs = {"latency_ms": table([[1, 4], [1, 4]]), "peak_memory_mb": table([[9, 2], [9, 2]])}
    budgets = {"latency_ms": 3.0, "peak_memory_mb": 6.0}
    with pytest.raises(InfeasibleBudget, match=r"latency_ms = 3 .*peak_memory_mb") as caught:
        select(table([[0, 1], [0, 1]]), costs, budgets)
    assert caught.value.cheapest == 8
    assert caught.value.others == ("peak_memory_mb",)


def test_budgets_that_clash_without_the_first_name_the_second() -> None:
    costs = {
        "params": table([[1, 1], [1, 1]]),
        "latency_ms": table([[1, 4], [1, 4]]),
        "peak_memory_mb": table([[9, 2], [9, 2]]),
    }
    budgets = {"params": 2.0, "latency_ms": 3.0, "peak_memory_mb": 6.0}
    with pytest.raises(InfeasibleBudget) as caught:
        select(table([[0, 1], [0, 1]]), costs, budgets)
    assert caught.value.name == "latency_ms"


def test_an_infeasible_budget_survives_pickling() -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        select(table([[0, 1]]), {"ms": table([[2, 3]])}, {"ms": 1.0})
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.name, copied.budget, copied.cheapest) == ("ms", 1.0, 2.0)


@pytest.mark.parametrize(
    ("scores", "costs", "message"),
    [
        ([[0, 1], [0, math.nan]], [[1, 1], [1, 1]], "scores, layer 1, candidate 1: nan"),
        ([[0, 1], [-math.inf, 1]], [[1, 1], [1, 1]], "scores, layer 1, candidate 0: -inf"),
        ([[0, 1], [0, 1]], [[1, math.nan], [1, 1]], "costs of c, layer 0, candidate 1: nan"),
        ([[0, 1], [0, 1]], [[1, 1], [-2, 1]], "costs of c, layer 1, candidate 0: -2"),
        ([[0, 1], [0, 1]], [[1, 1], [1, 1, 1]], "costs of c, layer 1: 3 candidates, but scores have 2"),
        ([[0, 1], [0, 1]], [[1, 1]], "costs of c: 1 layers, but scores have 2"),
        ([[0, 1], [math.inf, 1]], [[1, 1], [1, math.inf]], "layer 1: no candidate is available"),
        ([[0, 1], []], [[1, 1], []], "layer 1: no candidate is available"),
        ([], [], "no layers"),
    ],
)
def test_bad_tables_are_refused(scores: list[list[float]], costs: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(table(scores), {"c": table(costs)}, {"c": 10.0})


def test_scores_that_are_no_list_per_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 0: expected one value per candidate, got shape \(1, 2\)"):
        select([np.zeros((1, 2))], {}, {})


@pytest.mark.parametrize(
    ("budgets", "options", "message"),
    [
        ({"energy_mj": 1.0}, {}, "budget energy_mj: there is no such cost; costs are c"),
        ({"c": math.nan}, {}, "budget c: nan"),
        ({"c": 1.0}, {"count": 0}, "count"),
        ({"c": 1.0}, {"max_overlap": 1.2}, "max_overlap"),
        ({"c": 1.0}, {"time_limit_s": 0.0}, "time_limit_s"),
    ],
)
def test_bad_options_are_refused(budgets: dict[str, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(table([[0, 1]]), {"c": table([[1, 1]])}, budgets, **options)
